"""One loaded model that many use at once, in whatever mode, with clones that come and go."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.clones import named
from support.command import pnc_forked
from support.networks import preprocess
from torch import nn

import pnc_cli
from pnc_cli.branch.branches import Branches
from pnc_cli.branch.patched import PatchedModel
from pnc_cli.errors import UsageError
from pnc_cli.network.load import load_network
from pnc_cli.placement.probe import probe_images

THREADS = 8


def same(one, other):
    """Bit for bit."""
    return one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()


def at_once(work, given):
    """``work`` of each of ``given``, by eight threads that start together."""
    start = threading.Barrier(THREADS)

    def first():
        start.wait()

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda _: first(), range(THREADS)))
        return list(pool.map(work, given))


@pytest.fixture(scope="module")
def images():
    return preprocess(probe_images(16, (3, 32, 32), seed=1))


@pytest.fixture(scope="module")
def batches(images):
    """Batches of 1 to 5 images, no two alike."""
    rolled = [images.roll(k, -1)[k % 3 :] for k in range(40)]
    return [x[: 1 + k % 5] for k, x in enumerate(rolled)]


@pytest.fixture(scope="module")
def clones(made, two):
    return [made.clone, two / "more.safetensors"]


@pytest.fixture(params=[None, "mirror"], ids=["plain", "mirror"])
def model(request, made, clones):
    return pnc_cli.load(made.target, clones, tta=request.param)


# threads ----------------------------------------------------------------------------------------


def test_from_eight_threads_each_gets_the_logits_of_its_own_images(model, batches):
    wanted = [model(x) for x in batches]
    got = at_once(model, batches * 5)
    wrong = [k for k, z in enumerate(got) if not same(z, wanted[k % len(wanted)])]
    assert not wrong, f"{len(wrong)} of {len(got)} answers"


def test_from_eight_threads_the_targets_logits_are_its_own(made, model, batches):
    alone = pnc_cli.load(made.target)
    wanted = [alone(x) for x in batches]
    assert all(same(z[:, :3], w) for z, w in zip(at_once(model, batches), wanted))
    assert all(same(z, w) for z, w in zip(at_once(model.target, batches), wanted))


def test_threads_that_set_modes_meanwhile_change_no_answer(model, batches):
    wanted = [model(x) for x in batches]

    def work(k):
        model.train(k % 2 == 0)
        return model(batches[k % len(batches)])

    got = at_once(work, range(120))
    assert all(same(z, wanted[k % len(wanted)]) for k, z in enumerate(got))


def test_hooks_are_put_on_once(model, images):
    def hooks():
        return {n: (*m._forward_hooks, *m._forward_pre_hooks) for n, m in model.named_modules()}

    before = hooks()
    assert any(before.values())
    model(images)
    assert hooks() == before


def test_models_that_share_a_target_are_read_each_for_itself(made, clones, images):
    loaded, network = pnc_cli.load(made.target, clones), load_network(made.target)
    one, other = (
        PatchedModel(network, {name: loaded.branches[name]}, [loaded.clone_manifests[name]])
        for name in loaded.clone_names
    )
    wanted = one(images), other(images)
    nested = []

    def others_pass(module, args, out):
        if not nested:
            nested.append(None)
            nested[0] = [m(images.flip(0)) for m in (other, one)]

    network.model.layer4[0].register_forward_hook(others_pass)
    assert same(one(images), wanted[0]) and same(other(images), wanted[1])
    assert same(nested[0][0], other(images.flip(0))) and same(nested[0][1], one(images.flip(0)))


def test_a_model_is_loaded_while_another_answers(made, clones, batches):
    model, answers = pnc_cli.load(made.target, clones), []
    wanted, done = [model(x) for x in batches], threading.Event()

    def serve():
        while not done.is_set():
            answers.extend(same(model(x), w) for x, w in zip(batches, wanted))

    with ThreadPoolExecutor(4) as pool:
        serving = pool.submit(serve)
        try:
            loaded = list(pool.map(lambda _: pnc_cli.load(made.target, clones), range(6)))
        finally:
            done.set()
        serving.result()
    assert answers and all(answers)
    assert all(same(m(x), w) for m in loaded for x, w in zip(batches, wanted))


# copies and compilers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_answer_for_themselves_from_eight_threads(model, batches, copied):
    wanted, other = [model(x) for x in batches], copied(model)
    assert other.recorder is not model.recorder
    with torch.no_grad():
        other.target.conv1.weight.mul_(2)
    changed = [other(x) for x in batches]
    work = at_once(lambda k: (other if k % 2 else model)(batches[k % 40]), range(160))
    for k, z in enumerate(work):
        assert same(z, (changed if k % 2 else wanted)[k % 40])


def test_replicas_answer_as_data_parallel_runs_them(model, batches):
    """One replica a thread: they share the hooks, as ``nn.parallel.replicate`` leaves them."""

    def replica():
        made = {m: m._replicate_for_data_parallel() for m in model.modules()}
        for m, copied in made.items():
            copied._modules = {name: made.get(child) for name, child in m._modules.items()}
            copied._parameters, copied._buffers = dict(m._parameters), dict(m._buffers)
        return made[model]

    wanted = [model(x) for x in batches]
    replicas = [replica() for _ in batches]
    got = at_once(lambda pair: pair[0](pair[1]), list(zip(replicas, batches)))
    assert all(same(z, w) for z, w in zip(got, wanted))
    name = model.clone_names[0]
    with model.enabled(name):
        some, narrowed = [replica() for _ in range(8)], [model(x) for x in batches[:8]]
        got = at_once(lambda pair: pair[0](pair[1]), list(zip(some, batches)))
    assert all(same(z, w) for z, w in zip(got, narrowed))


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
def test_it_compiles_as_one_graph(model, images, backend):
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.no_grad():
        for x in (images, images[:5], images[3:7]):
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
        for names in ([], model.clone_names[1:]):
            with model.enabled(*names):
                torch.testing.assert_close(compiled(images), model(images), rtol=1e-5, atol=1e-5)
        model.target.train()
        wanted = copy.deepcopy(model)(images)
        torch.testing.assert_close(compiled(images), wanted, rtol=1e-5, atol=1e-5)
        assert not any(m.training for m in model.modules())
    torch._dynamo.reset()


@pytest.mark.slow
def test_compiled_it_answers_eight_threads(model, batches):
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=True)

    @torch.no_grad()
    def work(x):
        return compiled(x)

    given = [x for x in batches if len(x) > 1]
    for x in given:
        work(x)  # a compiler that eight threads start compiles eight times
    wanted = [model(x) for x in given]
    for z, w in zip(at_once(work, given), wanted):
        torch.testing.assert_close(z, w, rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
def test_it_is_exported_for_batches_of_any_size(model, images, strict):
    torch._dynamo.reset()
    some = ({0: torch.export.Dim("batch", min=2)},)
    program = torch.export.export(model, (images,), dynamic_shapes=some, strict=strict).module()
    for x in (images, images[:5]):
        torch.testing.assert_close(program(x), model(x), rtol=1e-5, atol=1e-5)
    assert same(model(images)[:, :3], model.target(images))


def test_it_is_traced(model, images):
    traced = torch.jit.trace(model, (images,))
    assert same(traced(images), model(images))


def test_it_is_written_as_onnx(model, images, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (images,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    [found] = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(images), rtol=1e-3, atol=1e-3)


def test_a_target_that_was_compiled_alone_is_said(made, images):
    model = pnc_cli.load(made.patched)
    model.target = torch.compile(model.target, backend="eager")
    with pytest.raises(UsageError, match="compiled alone") as e:
        model(images)
    assert "torch.compile(model)" in e.value.hint
    torch._dynamo.reset()


# modes ------------------------------------------------------------------------------------------

TRAIN = {
    "train": lambda m: m.train(),
    "in another module": lambda m: nn.Sequential(m).train(),
    "the target": lambda m: m.target.train(),
    "the copied part": lambda m: next(iter(m.branches.values())).module.train(),
    "every module": lambda m: m.apply(lambda one: one.train()),
    "a flag": lambda m: setattr(m.target.bn1, "training", True),
}


@pytest.mark.parametrize("how", TRAIN)
def test_whatever_is_called_target_and_copied_part_stay_in_eval(made, model, images, how):
    alone, wanted = pnc_cli.load(made.target)(images), model(images)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(
                lambda m, args, out: nn.functional.dropout(out, 0.5, m.training)
            )
    TRAIN[how](model)
    z = model(images)
    assert same(z, wanted) and same(z[:, :3], alone)
    after = model.state_dict()
    assert [n for n, t in before.items() if not torch.equal(t, after[n])] == []
    inner = [*model.target.modules(), *model.branches.modules()]
    assert not any(m.training for m in inner)


def test_train_sets_what_modules_say_of_themselves(made):
    model = pnc_cli.load(made.patched)
    assert model.train() is model and model.training
    assert model.eval() is model and not model.training
    with pytest.raises(ValueError, match="boolean"):
        model.train("yes")


# names ------------------------------------------------------------------------------------------

HOSTILE = ["train", "type", "half", "keys", "items", "pop", "modules", "T_destination"]
HOSTILE += ["training", "class", "None", "1", "clone_train", "a-b_c"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_clone_may_have_any_name(made, tmp_path, images, name):
    wanted = pnc_cli.load(made.patched)(images)
    model = pnc_cli.load(made.target, named(made.clone, name, tmp_path))
    assert same(model(images), wanted) and model.clone_names == [name] == list(model.branches)
    assert name in model.branches and [*model.branches.keys()] == [name]
    assert [(name, model.branches[name])] == [*model.branches.items()]
    other = copy.deepcopy(model)
    other.load_state_dict(model.state_dict())
    assert same(torch.func.functional_call(other, model.state_dict(), (images,)), wanted)
    for module, _ in model.named_modules():
        model.get_submodule(module)
    model.eject(name)
    assert model.clone_names == [] and model.num_classes == 3


def test_no_attribute_of_a_module_is_refused_as_a_name():
    names = [n for n in dir(nn.ModuleDict()) if not n.startswith("_")]
    branches = Branches({n: nn.Identity() for n in names})
    assert [*branches] == names and len(dict(branches.named_children())) == len(names) > 50


@pytest.mark.parametrize("name", ["train", "class"])
def test_clones_of_any_name_go_through_every_command(made, tmp_path, name):
    clone, patched = named(made.clone, name, tmp_path), tmp_path / "patched.safetensors"
    few = ["--data", made.test, "--limit-per-class", "2", "--json"]
    ran = pnc_forked("eval", made.target, "--clone", clone, *few, cwd=tmp_path)
    assert ran.code == 0 and [c["name"] for c in ran.json["clones"]] == [name], ran.err
    together = ["--data", made.train, "--limit-per-class", "2"]
    ran = pnc_forked("inject", made.target, clone, "-o", patched, *together, cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert pnc_forked("eval", patched, *few, cwd=tmp_path).code == 0
    out = tmp_path / "restored.safetensors"
    assert pnc_forked("eject", patched, "--name", name, "-o", out, cwd=tmp_path).code == 0
    assert out.read_bytes() == made.target.read_bytes()


# taking off, and for a while --------------------------------------------------------------------


def consistent(model, images):
    """Whether all that says how many classes there are agrees with the logits."""
    count = model(images).shape[1]
    cfgs = model.pretrained_cfg["num_classes"], model.default_cfg["num_classes"]
    told = [model.num_classes, len(model.label_names), *cfgs]
    labels = [label for m in model.manifests for label in m.labels]
    return told == [count] * 4 and model.label_names[model.target_classes :] == labels


def test_a_clone_comes_off_and_all_that_is_said_goes_with_it(made, clones, model, images):
    whole, [first, second] = model(images), model.clone_names
    assert consistent(model, images)
    model.eject(first)
    assert consistent(model, images) and model.clone_names == [second] == ["more"]
    assert model.label_names == [*made.old, "blue_2"]
    assert same(model(images), pnc_cli.load(made.target, clones[1:], tta=model.tta)(images))
    assert same(model(images), whole[:, [0, 1, 2, 5]])
    model.eject()
    assert consistent(model, images) and model.label_names == made.old
    assert same(model(images), pnc_cli.load(made.target)(images))


@pytest.mark.parametrize("how", ["pop", "del", "clear"])
def test_what_is_said_is_true_of_branches_taken_out_by_hand(model, images, how):
    name = model.clone_names[0]
    if how == "pop":
        model.branches.pop(name)
    elif how == "del":
        del model.branches[name]
    else:
        model.branches.clear()
    assert name not in model.clone_names and consistent(model, images)


def test_some_clones_answer_for_a_while(model, images):
    whole, names = model(images), model.clone_names
    with model.enabled("more") as same_model:
        assert same_model is model and consistent(model, images)
        assert model.clone_names == ["more"] and same(model(images), whole[:, [0, 1, 2, 5]])
        with model.enabled():
            assert consistent(model, images) and same(model(images), whole[:, :3])
        with model.enabled(*reversed(names)):  # in the order that they have
            assert consistent(model, images) and same(model(images), whole)
        assert model.clone_names == ["more"]
    assert model.clone_names == names and same(model(images), whole)


def test_after_an_error_all_clones_answer_again(model):
    names = model.clone_names
    with pytest.raises(ZeroDivisionError), model.enabled():
        raise ZeroDivisionError
    assert model.clone_names == names


def test_what_one_thread_enables_concerns_no_other(model, batches):
    sets = [(), ("more",), tuple(model.clone_names)]
    wanted = []
    for names in sets:
        with model.enabled(*names):
            wanted.append([model(x) for x in batches])

    def work(k):
        with model.enabled(*sets[k % 3]):
            return model(batches[k % 40])

    got = at_once(work, range(240))
    assert all(same(z, wanted[k % 3][k % 40]) for k, z in enumerate(got))


def test_what_is_enabled_of_one_model_concerns_no_other(made, clones, images):
    one, other = (pnc_cli.load(made.target, clones) for _ in range(2))
    with one.enabled(), other.enabled("more"):
        assert one.num_classes == 3 and other.num_classes == 4
        assert copy.deepcopy(one).num_classes == 6


def test_a_clone_comes_off_while_others_ask(made, clones, batches):
    model = pnc_cli.load(made.target, clones)
    whole = [model(x) for x in batches]

    def work(k):
        if k == 60:
            model.eject("more")
        return model(batches[k % 40])

    for k, z in enumerate(at_once(work, range(120))):
        assert same(z, whole[k % 40][:, : z.shape[1]]) and z.shape[1] in (5, 6)
    assert model.clone_names == ["yellow-purple"]


def test_an_evaluation_is_of_the_clones_that_are_enabled(made, clones):
    model = pnc_cli.load(made.target, clones)
    alone = pnc_cli.evaluate(made.target, data=made.test, clone=clones[0], limit_per_class=3)
    with model.enabled(model.clone_names[0]):
        found = pnc_cli.evaluate(model, data=made.test, limit_per_class=3)
    assert found == alone


@pytest.mark.parametrize("method", ["eject", "enabled"])
def test_a_clone_that_is_not_there_is_refused_and_nothing_happens(model, images, method):
    before = model(images)

    def act(*names):
        if method == "eject":
            model.eject(*names)
        else:
            with model.enabled(*names):
                pass

    with pytest.raises(UsageError, match="no clone 'mroe'") as e:
        act("more", "mroe")
    assert e.value.hint == "it has: yellow-purple, more"
    assert same(model(images), before)
