"""The pipeline's graph as a cluster reads it, and its components as a folder each."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from kfp import components as kfp_components

from marble_core import __version__, stages
from marble_core.config.loading import load_config, presets
from marble_core.config.pipeline_parameters import KEYS, overrides_of
from marble_core.runtime.environment import AGAIN, KFP_RUN, KUBEFLOW_PAGE, LIMITS, MLFLOW_PAGE, NODES, PIPELINE_VERSION
from marble_core.types import MarbleError
from marble_kubeflow.pipelines.marble import PACKAGE, compile_to
from marble_kubeflow.pipelines.settings import read_settings
from paths import ROOT

STAGES = ("prepare", "train", "evaluate", "register")


@pytest.fixture(scope="module")
def spec() -> dict:
    return next(yaml.safe_load_all(PACKAGE.read_text()))


def test_the_committed_pipeline_is_what_its_source_compiles_to(tmp_path: Path) -> None:
    assert compile_to(tmp_path / "marble.yaml").read_bytes() == PACKAGE.read_bytes(), (
        "run: python -m marble_kubeflow.pipelines.marble"
    )


def test_kfp_loads_the_pipeline_and_every_parameter_has_a_description_and_a_default_that_works(spec: dict) -> None:
    kfp_components.load_component_from_file(str(PACKAGE))
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert {"preset", "base_model", "prompts", "rewards", "method", "steps", "gpus", "accelerator", "seed", "run_id"} < set(
        parameters
    )
    assert spec["root"]["dag"]["tasks"]["prepare"]["inputs"]["parameters"]["rehearse"]["componentInputParameter"] == "rehearse"
    assert all(p["description"] and p["isOptional"] and p["defaultValue"] is not None for p in parameters.values())
    defaults = {name: p["defaultValue"] for name, p in parameters.items()}
    form = {name: defaults[name] for name in (*KEYS, "prompts", "held_out", "rewards", "gpus", "config")}
    assert load_config("demo", overrides=overrides_of("demo", **form)) == load_config("demo")


def test_the_form_has_no_sentinels_and_a_drop_down_where_there_is_a_choice(spec: dict) -> None:
    fields = spec["root"]["inputDefinitions"]["parameters"]
    filled = {name: field["defaultValue"] for name, field in fields.items() if field["defaultValue"]}
    usual = {"preset": "demo", "accelerator": "nvidia.com/gpu", "new_prompts": "preset", "rehearse": "no"}
    assert filled == usual, "what is empty is the preset's"
    assert {field["parameterType"] for field in fields.values()} == {"STRING"}
    choices = {name: field["literals"] for name, field in fields.items() if "literals" in field}
    assert set(choices) == {"preset", "rehearse", "new_prompts", "accelerator"} and set(choices["preset"]) == set(presets())
    assert choices["new_prompts"] == ["preset", "mix", "only", "all"] and all(map(all, choices.values())), (
        "nothing blocks Start"
    )
    assert all(fields[name]["defaultValue"] in choice for name, choice in choices.items())
    shown = spec["pipelineInfo"]["description"].splitlines()
    assert [line.partition(":")[0] for line in shown[2:]] == sorted(fields), (
        "the page shows the description, and of a field its name"
    )


def executors(spec: dict) -> dict[str, dict]:
    return {n.removeprefix("exec-"): e["container"] for n, e in spec["deploymentSpec"]["executors"].items()}


def test_every_stage_names_its_image_and_installs_nothing(spec: dict) -> None:
    assert {s: c["image"] for s, c in executors(spec).items()} == {s: f"marble-{s}:{__version__}" for s in STAGES}
    assert "pip install" not in str([container["command"] for container in executors(spec).values()])


def test_a_stage_refuses_a_pipeline_of_another_version(spec: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for container in executors(spec).values():
        assert {"name": PIPELINE_VERSION, "value": __version__} in container["env"]
    monkeypatch.setenv(PIPELINE_VERSION, "9.9")
    with pytest.raises(MarbleError, match=f"of MARBLE 9.9 and this image of {__version__}"):
        stages.register(*[tmp_path] * 4)


@pytest.fixture(scope="module")
def pods(spec: dict) -> dict[str, dict]:
    platform = list(yaml.safe_load_all(PACKAGE.read_text()))[1]
    found = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): pod for name, pod in found.items()}


def secrets_of(pod: dict) -> dict[str, set[str]]:
    return {s["secretName"]: {pair["envVar"] for pair in s["keyToEnv"]} for s in pod.get("secretAsEnv", [])}


def test_gpus_are_parameters_of_the_run_for_train_and_evaluate_alone(spec: dict, pods: dict[str, dict]) -> None:
    asked = {s: c["resources"]["accelerator"] for s, c in executors(spec).items() if "accelerator" in c["resources"]}
    assert {s: a["resourceCount"] for s, a in asked.items()} == {
        "train": "{{$.inputs.parameters['pipelinechannel--prepare-gpus']}}",
        "evaluate": "{{$.inputs.parameters['pipelinechannel--prepare-evaluation_gpus']}}",
    }
    # KFP's driver reads a pod's resources with GetStringValue: a number would become an empty text.
    types = {n: p["parameterType"] for n, p in spec["root"]["inputDefinitions"]["parameters"].items()}
    assert types["gpus"] == types["evaluation_gpus"] == types["accelerator"] == "STRING"
    assert {s for s, pod in pods.items() if "tolerations" in pod} == {"train", "evaluate"}


def test_cpus_and_memory_of_train_and_evaluate_are_what_prepare_derives_where_the_settings_say_nothing(
    spec: dict, tmp_path: Path
) -> None:
    found = {stage: container["resources"] for stage, container in executors(spec).items()}
    for stage in ("train", "evaluate"):
        asked = {kind: f"{{{{$.inputs.parameters['pipelinechannel--prepare-{stage}_{kind}']}}}}" for kind in ("cpu", "memory")}
        assert found[stage]["resourceCpuRequest"] == asked["cpu"] and found[stage]["resourceMemoryRequest"] == asked["memory"]
    assert (found["prepare"]["resourceCpuRequest"], found["register"]["resourceCpuRequest"]) == ("1", "250m")
    (tmp_path / "settings.yaml").write_text("pods: {evaluate: {cpu_request: '16'}}")
    own = next(yaml.safe_load_all(compile_to(tmp_path / "p.yaml", read_settings(tmp_path / "settings.yaml")).read_text()))
    evaluate = executors(own)["evaluate"]["resources"]
    assert evaluate["resourceCpuRequest"] == "16" and evaluate["resourceMemoryRequest"].endswith("prepare-evaluate_memory']}}")


def test_a_stage_gets_the_secrets_that_it_needs_and_no_others(pods: dict[str, dict]) -> None:
    aws, token = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}, {"HF_TOKEN"}
    assert secrets_of(pods["train"])["marble-s3"] == aws and secrets_of(pods["train"])["marble-hub"] == token
    assert set(secrets_of(pods["register"])) == {"marble-s3", "marble-mlflow", "marble-notices"}
    assert all("marble-mlflow" in secrets_of(pod) for pod in pods.values())
    assert all(pod["configMapAsEnv"][0]["configMapName"] == "marble-defaults" for pod in pods.values())


def test_no_pod_may_run_as_root(pods: dict[str, dict]) -> None:
    assert set(pods) == set(STAGES)
    assert {stage: pod["securityContext"]["runAsNonRoot"] for stage, pod in pods.items()} == dict.fromkeys(STAGES, True)


def test_a_pod_is_told_how_its_s3_wants_buckets_named_and_objects_summed(pods: dict[str, dict]) -> None:
    wanted = {"MARBLE_S3_ADDRESSING", "AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"}
    for pod in pods.values():
        (source,) = (each for each in pod["configMapAsEnv"] if each["configMapName"] == "marble-defaults")
        assert source["optional"] and wanted < {pair["envVar"] for pair in source["keyToEnv"]}


def variables(spec: dict) -> dict[str, dict[str, str]]:
    return {stage: {v["name"]: v["value"] for v in c["env"]} for stage, c in executors(spec).items()}


def test_no_variable_is_set_that_kubeflows_mlflow_plugin_sets(spec: dict, pods: dict[str, dict]) -> None:
    """Kubernetes refuses a pod in which one has a value and a source: with the plugin on, no stage would start."""
    nodes = json.loads(variables(spec)["train"][NODES])["env"]
    for stage, pod in pods.items():
        sources = [
            pair for kind in ("secretAsEnv", "configMapAsEnv") for each in pod.get(kind, []) for pair in each["keyToEnv"]
        ]
        named = {pair["envVar"] for pair in sources} | set(variables(spec)[stage]) | {each["name"] for each in nodes}
        assert not {name for name in named if name.startswith("MLFLOW_")}, stage
        assert {"secretKey": "MLFLOW_TRACKING_TOKEN", "envVar": "MARBLE_MLFLOW_TRACKING_TOKEN"} in sources
        assert "MARBLE_MLFLOW_TRACKING_URI" in named


def test_every_pod_has_timeout_retries_labels_and_the_workers_shared_memory(spec: dict, pods: dict[str, dict]) -> None:
    tasks = spec["root"]["dag"]["tasks"]
    week = 7 * 24 * 3600
    # backoffMaxDuration is the window for all pods from the first one's start, and the next one's deadline: no limit of the wait.
    assert {stage: tasks[stage]["retryPolicy"]["maxRetryCount"] for stage in STAGES} == dict.fromkeys(STAGES, 2), "no storm"
    assert tasks["train"]["retryPolicy"] == {
        "maxRetryCount": 2, "backoffDuration": "30s", "backoffFactor": 2.0, "backoffMaxDuration": f"{3 * week + 30 + 60}s"
    }  # fmt: skip
    assert json.loads(variables(spec)["train"][AGAIN]) == {"retries": 8, "seconds": 30, "factor": 2, "longest": 600}
    assert {stage for stage, own in variables(spec).items() if AGAIN in own} == {"train", "evaluate"}
    assert pods["train"]["activeDeadlineSeconds"] == str(7 * 24 * 3600) and all(
        "activeDeadlineSeconds" in p for p in pods.values()
    )
    assert {pod["podMetadata"]["labels"]["marble/stage"] for pod in pods.values()} == set(STAGES)
    shared = {s: {m["mountPath"]: m for m in pod.get("emptyDirMounts", [])}.get("/dev/shm") for s, pod in pods.items()}
    assert {s for s, mount in shared.items() if mount} == {"train", "evaluate"} and shared["train"]["medium"] == "Memory"


def test_every_stage_knows_its_run_in_kubeflow_and_prepare_its_name(spec: dict, pods: dict[str, dict]) -> None:
    label = {"name": KFP_RUN, "fieldPath": "metadata.labels['pipeline/runid']"}
    assert all(label in pod["fieldPathAsEnv"] for pod in pods.values())
    name = spec["root"]["dag"]["tasks"]["prepare"]["inputs"]["parameters"]["name"]
    assert name == {"runtimeValue": {"constant": "{{$.pipeline_job_name}}"}}


def test_a_settings_file_moves_images_pods_and_secrets(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    digest = "sha256:" + "a" * 64
    file.write_text(f"""
images: {{registry: registry.example/team, digests: {{train: "{digest}"}}, pull_secrets: [pull]}}
secrets: [{{name: mine, keys: [AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY], stages: [train], optional: false}}]
authority: {{config_map: company-ca}}
pods: {{train: {{retries: 1, pods: 0, memory_limit: 400Gi}}}}
gpu: {{labels: {{kueue.x-k8s.io/queue-name: team}}, node_selector: {{nvidia.com/gpu.product: H100}}, tolerations: [{{key: gpu, value: "yes", effect: NoExecute}}]}}
volumes: {{cache_claim: models}}
labels: {{team: vision}}
workflow: {{keep_hours: 48, deadline_hours: 200}}
pages: {{kubeflow: "https://kubeflow.example/_/pipeline/?ns=team", mlflow: "https://mlflow.example"}}
""")
    spec, platform = yaml.safe_load_all(compile_to(tmp_path / "p.yaml", read_settings(file, tag="7")).read_text())
    containers, pods = executors(spec), platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert containers["train"]["image"] == f"registry.example/team/marble-train@{digest}"
    assert containers["register"]["image"] == "registry.example/team/marble-register:7"
    assert containers["train"]["resources"]["resourceMemoryLimit"] == "400Gi"
    assert "resourceMemoryRequest" not in containers["train"]["resources"], "Kubernetes requests the limit"
    assert json.loads(variables(spec)["prepare"][LIMITS]) == {"train": {"memory": "400Gi"}}
    train = pods["exec-train"]
    assert json.loads(variables(spec)["train"][AGAIN])["retries"] == 1
    assert "retryPolicy" not in spec["root"]["dag"]["tasks"]["train"]
    assert secrets_of(train) == {"mine": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}} and not secrets_of(
        pods["exec-register"]
    )
    assert train["nodeSelector"] == {"labels": {"nvidia.com/gpu.product": "H100"}} and train["tolerations"][0]["key"] == "gpu"
    assert (
        train["pvcMount"][0]["mountPath"] == "/cache" and {"name": "HF_HOME", "value": "/cache"} in containers["train"]["env"]
    )
    assert {"name": "AWS_CA_BUNDLE", "value": "/etc/marble-ca/ca.crt"} in containers["register"]["env"]
    own = variables(spec)["evaluate"]
    assert (own[KUBEFLOW_PAGE], own[MLFLOW_PAGE]) == ("https://kubeflow.example/_/pipeline/?ns=team", "https://mlflow.example")
    workflow = platform["platforms"]["kubernetes"]["pipelineConfig"]
    assert workflow == {"resourceTtlOnCompletion": 48 * 3600, "activeDeadlineSeconds": 200 * 3600}
    queue = {stage: pods[f"exec-{stage}"]["podMetadata"]["labels"].get("kueue.x-k8s.io/queue-name") for stage in STAGES}
    assert queue == {"prepare": None, "train": "team", "evaluate": "team", "register": None}
    assert train["podMetadata"]["labels"]["team"] == "vision" and train["imagePullSecret"][0]["secretName"] == "pull"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pods: {train: {cpu: 4}}", "'pods.train.cpu'.*did you mean 'cpu_limit'"),
        ("pods: {training: {retries: 4}}", "pods.training"),
        ("image: {}", "'image'.*did you mean 'images'"),
        ("gpu: {tolerations: [{key: gpu}]}", "operator Equal needs key and value"),
        ("config_maps: [{name: a, keys: [HF_HOME], stages: [train]}]", "pods of train have HF_HOME from MARBLE itself"),
        (
            "secrets: [{name: a, keys: [KEY], stages: [prepare]}, {name: b, keys: [KEY], stages: [prepare]}]",
            "pods of prepare would have KEY twice",
        ),
        (
            "authority: {config_map: a}\nsecrets: [{name: a, keys: [SSL_CERT_FILE], stages: [train]}]",
            "have SSL_CERT_FILE from MARBLE",
        ),
        ("backoff: {factor: 1.5}", "backoff.factor"),  # Argo: "value '1.5' cannot be resolved to an int"
        ("volumes: {shared_memory: plenty}", "volumes.shared_memory.*'plenty' is no Kubernetes quantity, such as"),
        ("pods: {train: {memory_request: 6Gi, memory_limit: 1Gi}}", "pods.train.*memory_request 6Gi is above memory_limit 1Gi"),
        ("labels: {team: vision & sound}", "labels.team.*is no value of a Kubernetes label"),
        ("labels: {'the team': vision}", "labels.*'the team' is no key of a Kubernetes label"),
        ("gpu: {node_selector: {pool: -a}}", "gpu.node_selector.pool.*no value of a Kubernetes label"),
        ("gpu: {resource: NVIDIA H100}", "gpu.resource.*no resource that a pod can ask for"),
        ("gpu: {tolerations: [{key: gpu, operator: Exists, value: x}]}", "leave value out"),
        ("images: {pull_secrets: [a..b]}", "images.pull_secrets.*no name of a Kubernetes object"),
        ("- a", "must be a mapping"),
    ],
)
def test_settings_that_cannot_be_right_are_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(MarbleError, match=says):
        read_settings(tmp_path / "settings.yaml")


def test_the_first_screen_shows_one_straight_line_of_four_and_a_run_is_nine_pods(spec: dict) -> None:
    """Each graph costs KFP a driver pod and a layer of its page, and so does each condition and each exit handler."""
    tasks = spec["root"]["dag"]["tasks"]
    assert set(tasks) == set(STAGES)
    for before, stage in pairwise(STAGES):
        assert before in tasks[stage]["dependentTasks"], "a line"
    components = [component for component in spec["components"].values() if "dag" in component]
    assert components == [], "no graph within the graph"
    assert not any(key in task for task in tasks.values() for key in ("triggerPolicy", "iterator", "artifactIterator"))
    drivers = 1 + len(tasks)
    assert drivers + len(executors(spec)) <= 9


def test_no_task_may_be_answered_from_a_cache(spec: dict) -> None:
    tasks = spec["root"]["dag"]["tasks"]
    assert not any(task.get("cachingOptions", {}).get("enableCache") for task in tasks.values())


@pytest.mark.parametrize("stage", STAGES)
def test_a_component_is_a_folder_with_one_short_file_that_calls_one_stage(stage: str) -> None:
    folder = ROOT / "components" / stage
    source = (folder / "component.py").read_text()
    assert len(source.splitlines()) <= 66
    assert f"stages.{stage}(" in source
    metadata = yaml.safe_load((folder / "metadata.yaml").read_text())
    assert metadata["name"] == stage and metadata["image"] == f"marble-{stage}"
    assert (folder / "README.md").read_text().startswith(f"# {stage}\n")
