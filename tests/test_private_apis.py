"""Every private or undocumented API of third parties that the project touches: the first test to fail where one moves.

The checks run the real thing, tiny; rows of one mechanism share one. A new use of an underscore, or a third party's function
that is replaced, wants a row here.
"""

import ast
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.register_assert_rewrite(*(f"private_apis_of_{part}" for part in ("kubeflow", "models", "tools", "torch")))

import private_apis_of_kubeflow as kubeflow
import private_apis_of_models as models
import private_apis_of_tools as tools
import private_apis_of_torch as below

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("marble_core", "pipelines", "components", "images", "tests")
DOCUMENTED = {"_exit", "_replace"}  # Python's own
UNDERSCORED = re.compile(r"_[A-Za-z]\w*")


class Row(NamedTuple):
    library: str
    name: str  # below the library; with brackets where only an object has it, or it is an argument
    user: str  # the part of the project
    relied: str
    check: Callable[..., None]


# fmt: off
ROWS = [Row(*row) for row in (
    ("torch", "distributed.distributed_c10d._get_default_store", "watch over processes", "the group's store, with a clone", models.default_store),
    ("torch", "_dynamo.config.recompile_limit", "families of models", "how many versions of a block there may be", models.compiled_blocks),
    ("torch", "_dynamo.utils.counters", "tests of compiled blocks", "counts graphs and graph breaks", models.compiled_blocks),
    ("torch", "nn.Module.compile", "families of models, their tests", "acts in place, takes a backend", models.compiled_blocks),
    ("torch", "nn.Module().forward", "gradients of LoRA layers", "one set on a layer is called until it is deleted", models.lora),
    ("torch", "utils.flop_counter.FlopCounterMode(custom_mapping)", "bench", "its formulas get shapes", models.low_level),
    ("torch", "utils._python_dispatch.TorchDispatchMode", "counted kernels, live bytes, tests of waiting", "sees every operation below autograd", below.modes),
    ("torch", "utils._pytree.tree_leaves", "counted kernels, live bytes, tests of waiting", "tensors in nested arguments", below.modes),
    ("torch", "utils.flop_counter.flop_registry", "counted kernels", "formulas by operation, which get tensors", below.modes),
    ("torch", "overrides.TorchFunctionMode", "counted kernels, tests of precision", "sees functions of torch.nn.functional", below.modes),
    ("torch", "ops.aten._to_copy", "counted kernels", "what a cast is below autograd", below.modes),
    ("torch", "ops.aten._unsafe_view", "counted kernels", "how a product's rows are put back, without a kernel", below.modes),
    ("torch", "_foreach_copy_", "LoRA layers", "copies a list of tensors into another, of another precision", below.modes),
    ("peft", "tuners.lora.LoraLayer()._active_adapter", "LoRA layers", "the list of adapters that a forward applies", below.switch),
    ("peft", "tuners.lora.LoraLayer()._disable_adapters", "LoRA layers", "a forward applies none", below.switch),
    ("torch", "cuda.device_count", "tests of GPU hours", "how many GPUs a process has, looked up at each call", below.modes),
    ("torch", "save(_use_new_zipfile_serialization)", "tests of published heads", "False writes the old format, no zip", models.low_level),
    ("accelerate", "PartialState._reset_state", "process group", "forgets the group, so that the next one is seen", models.default_store),
    ("diffusers", "SD3Transformer2DModel()._gradient_checkpointing_func", "recomputation", "called with a block and its arguments, nothing between", models.checkpointing),
    ("diffusers", "FluxTransformer2DModel()._gradient_checkpointing_func", "recomputation", "the same, for both kinds of blocks", models.checkpointing),
    ("diffusers", "QwenImageTransformer2DModel()._gradient_checkpointing_func", "recomputation", "the same, with the two streams in the other order", models.qwen_image_parts),
    ("diffusers", "QwenImagePipeline._pack_latents", "Qwen-Image family", "2 x 2 latents a token, row by row", models.qwen_image_parts),
    ("diffusers", "QwenImagePipeline._unpack_latents", "Qwen-Image family", "the inverse, with an axis of time", models.qwen_image_parts),
    ("diffusers", "QwenImagePipeline().prompt_template_encode_start_idx", "Qwen-Image family", "tokens of the template before the prompt", models.qwen_image_parts),
    ("diffusers", "models.transformers.transformer_qwenimage.QwenImageTransformerBlock", "Qwen-Image family", "modulates by one method: shift, scale, gate in one; gives x and the gate", models.qwen_image_parts),
    ("diffusers", "AutoencoderKLQwenImage().decoder", "Qwen-Image family", "decodes one frame without caches", models.qwen_image_parts),
    ("diffusers", "pipelines.qwenimage.pipeline_qwenimage.calculate_shift", "tests of Qwen-Image", "mu by the image's tokens", models.qwen_image_parts),
    ("torch", "ops.aten._conj", "counted kernels", "a conjugate that starts no kernel", below.complex_views),
    ("diffusers", "SD3Transformer2DModel().transformer_blocks", "SD3 family, sizes", "names of the attention's layers; the last block has one less", models.attention_layers),
    ("diffusers", "FluxTransformer2DModel().single_transformer_blocks", "FLUX family, sizes", "q, k and v of a single block", models.attention_layers),
    ("diffusers", "StableDiffusion3Pipeline._get_clip_prompt_embeds", "SD3 family", "tokens and pooled of the CLIP of an index", models.sd3_prompts),
    ("diffusers", "StableDiffusion3Pipeline._get_t5_prompt_embeds", "SD3 family", "tokens on T5's device; zeros without T5", models.sd3_prompts),
    ("diffusers", "StableDiffusion3Pipeline().config(_class_name)", "count of tokens, tests of prompts", "what model_index.json says", models.sd3_prompts),
    ("diffusers", "FluxPipeline._get_clip_prompt_embeds", "FLUX family", "pooled vectors alone", models.flux_parts),
    ("diffusers", "FluxPipeline._get_t5_prompt_embeds", "FLUX family", "tokens on T5's device", models.flux_parts),
    ("diffusers", "FluxPipeline._prepare_latent_image_ids", "FLUX family", "rows of 0, row, column", models.flux_parts),
    ("diffusers", "FluxPipeline._pack_latents", "FLUX family", "2 x 2 latents a token, row by row", models.flux_parts),
    ("diffusers", "FluxPipeline._unpack_latents", "FLUX family", "the inverse, given pixels and the VAE's factor", models.flux_parts),
    ("diffusers", "FlowMatchEulerDiscreteScheduler().config", "FLUX family", "keys of the shift by size, which is computed here", models.schedules),
    ("diffusers", "pipelines.flux.pipeline_flux.calculate_shift", "tests of FLUX", "the same, as diffusers does it", models.schedules),
    ("diffusers", "DPMSolverMultistepScheduler().sigmas", "sampling", "one more than steps, shifted by flow_shift, 0 at the end", models.schedules),
    ("diffusers", "AutoencoderKL().tile_latent_min_size", "tiled decoding", "sides of a tile, set on the object", models.autoencoder),
    ("diffusers", "AutoencoderKL().encoder", "training of the demo's VAE", "means, then log-variances, which conv_out ends in", models.autoencoder),
    ("peft", "tuners.lora.LoraLayer().lora_A", "policy, LoRA files", "names of layers and weights by adapter, and in the file", models.lora),
    ("peft", "tuners.lora.LoraLayer().scaling", "tests of the registry", "alpha / r by adapter", models.lora),
    ("diffusers", "FluxPipeline.lora_state_dict", "LoRA files", "a dict of kohya's names comes back in diffusers', its alpha in the weights", models.kohya_flux),
    ("peft", "utils.get_peft_model_state_dict", "tests of the registry", "reads a model of diffusers; names without adapter", models.lora),
    ("transformers", "CLIPModel().state_dict", "HPSv2's original file", "names of all tensors", models.clip),
    ("transformers", "CLIPModel().get_image_features", "CLIP rewards", "the feature is its pooler_output", models.clip),
    ("transformers", "PreTrainedModel.from_pretrained", "rewards' checkpoints", "tensors without a file; the report's keys", models.clip),
    ("transformers", "PreTrainedConfig.get_config_dict", "rewards' checkpoints", "model_type, as in config_class", models.clip),
    ("transformers", "models.blip.modeling_blip.BlipVisionModel", "ImageReward's original file", "names of all tensors", models.blip),
    ("transformers", "models.blip.modeling_blip_text.BlipTextModel", "ImageReward", "an encoder with cross attention", models.blip),
    ("transformers", "Mask2FormerForUniversalSegmentation().state_dict", "mmdet's original file", "names of tensors, and two outputs", models.mask2former),
    ("transformers", "T5EncoderModel().encoder.final_layer_norm", "the demo's architecture", "zeros in it silence the encoder", models.silent_t5),
    ("rapidocr", "RapidOCR._load_rec_model", "OCR reward", "the recogniser alone", tools.ocr),
    ("rapidocr", "ch_ppocr_rec.TextRecInput", "OCR reward", "takes several lines, of which txts are in order", tools.ocr),
    ("kfp", "Client()._existing_config", "connection to Kubeflow", "what a REST client is made of", kubeflow.kfp_client),
    ("kfp", "Client()._healthz_api", "connection to Kubeflow", "shares its ApiClient with all others", kubeflow.kfp_client),
    ("kfp", "Client()._context_setting", "connection to Kubeflow", "the namespace of this process", kubeflow.kfp_client),
    ("kfp", "Client._LOCAL_KFP_CONTEXT", "tests of the cluster's commands", "the file with the user's namespace", kubeflow.kfp_client),
    ("kfp", "Client.get_kfp_healthz", "connection to Kubeflow", "what the constructor asks first", kubeflow.kfp_client),
    ("kfp", "Client().recurring_runs", "runs on a cluster", "the generated API, to delete a schedule and not its runs", kubeflow.kfp_client),
    ("kfp", "Client().pipelines", "runs on a cluster", "the generated API, to create a pipeline without a file", kubeflow.kfp_client),
    ("kfp", "client.KF_PIPELINES_SA_TOKEN_PATH", "connection to Kubeflow", "where a pod has its token", kubeflow.kfp_client),
    ("kfp", "client.ServiceAccountTokenVolumeCredentials", "connection to Kubeflow", "reads the file at each request", kubeflow.kfp_client),
    ("kfp", "components.load_component_from_text().pipeline_spec", "packages", "a message with pipelineInfo and inputDefinitions", kubeflow.kfp_pipeline),
    ("kfp", "local.docker_task_handler.run_docker_container", "pipeline in containers", "looked up when a stage begins, by names", kubeflow.kfp_docker),
    ("kfp", "local.subprocess_task_handler.replace_python_executable", "pipeline on one machine", "replaces python3 in paths too", kubeflow.kfp_subprocess),
    ("kfp_server_api", "rest.RESTClientObject.request(_request_timeout)", "connection to Kubeflow", "two limits; all verbs go through it", kubeflow.kfp_requests),
    ("kfp_server_api", "ApiClient().rest_client", "connection to Kubeflow", "may be replaced; bodies are bytes", kubeflow.kfp_requests),
    ("kfp_server_api", "ApiClient.sanitize_for_serialization", "runs on a cluster, tests", "JSON of a model, and back", kubeflow.kfp_models),
    ("kubeflow", "trainer.TrainerClient().backend", "training on several nodes", "custom_api, core_api, namespace; statuses in causes", kubeflow.trainer),
    ("kubeflow", "trainer.constants.constants.NODE", "training on several nodes", "begins the first pod's step", kubeflow.trainer),
    *(("kubeflow", f"trainer.backends.kubernetes.utils.{name}", "tests of a TrainJob's status", "what the SDK remembers between two calls", kubeflow.status)
      for name in ("_last_update_time", "_cached_token", "_http_session")),
    ("kubernetes", "config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", "tests of several nodes", "read at each call", kubeflow.kubeconfig),
    ("kubeflow_trainer_api", "models.TrainerV1alpha1TrainJob", "tests of several nodes", "drops what it does not know", kubeflow.kubeconfig),
    ("typer", "BadParameter.__base__", "command line", "its usage errors, with a message and a command's path", tools.typer_app),
    ("typer", "Typer().registered_commands", "examples of commands", "epilogs may be set before the first call", tools.typer_app),
    ("typer", "Typer().registered_groups", "examples of commands", "name and typer_instance", tools.typer_app),
    ("typer", "Typer.__call__", "command line", "returns Exit's code; reads a command's __signature__", tools.typer_app),
    ("mlflow", "system_metrics.system_metrics_monitor.SystemMetricsMonitor", "tracking", "parameters, start and finish", tools.mlflow_names),
    ("mlflow", "utils.mlflow_tags", "tracking, registry", "names of the tags that its pages read", tools.mlflow_names),
    ("mlflow", "protos.databricks_pb2.ErrorCode", "registry", "names of error codes", tools.mlflow_names),
    ("mlflow", "environment_variables", "tracking", "names of variables", tools.mlflow_names),
    ("mlflow", "server.fastapi_app.app", "MLflow of a laptop run", "an ASGI application; --app-name takes a plug-in's", tools.mlflow_server),
    ("mlflow", "MlflowClient.set_registered_model_alias", "tests of the champion", "what the registry moves aliases by", tools.mlflow_names),
    ("mlflow", "diffusers.save_model", "registry", "the LoRA lies in adapter_weights", tools.mlflow_names),
    ("boto3", "exceptions.S3UploadFailedError().__context__", "S3", "the server's own error", tools.s3_errors),
    ("boto3", "client().meta.endpoint_url", "S3", "what error sentences name", tools.s3_errors),
    *(("huggingface_hub", f"constants.{name}", "model cache, tests of it", "read at each call", tools.hub_constants)
      for name in ("HF_HUB_CACHE", "HF_ASSETS_CACHE", "HF_HUB_OFFLINE", "ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE")),
    ("huggingface_hub", "get_cached_repo_tree", "model cache", "an error of its own for a repository that is not there", tools.hub_constants),
    ("huggingface_hub", "utils.tqdm", "model cache", "the module's switches; the class of its bars", tools.hub_constants),
    ("httpx2", "TransportError", "model cache", "what the hub raises without a network", tools.hub_constants),
    ("matplotlib", "figure.Figure().savefig", "report", "what its SVG is made of: tags, colours as given", tools.drawing),
    ("matplotlib", "cbook.get_sample_data", "detector's self-check", "the portrait that comes with it", tools.drawing),
    ("cvxpy", "Problem().solve", "min-norm point", "Clarabel's tolerances pass through", tools.solver),
    ("pydantic", "ValidationError.errors", "loading of configurations", "types of errors, 'Value error, ' before ours", tools.settings),
    ("yaml", "SafeLoader.construct_mapping", "strict YAML", "overridden; a node's value is pairs of nodes", tools.settings),
    ("urllib3", "exceptions", "connection to Kubeflow", "names of the reasons why there is no answer", tools.settings),
)]
# fmt: on


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from diffusers import StableDiffusion3Pipeline

    from tiny_models import save_sd3

    return StableDiffusion3Pipeline.from_pretrained(save_sd3(tmp_path_factory.mktemp("sd3")))


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from diffusers import FluxPipeline

    from tiny_models import save_flux

    return FluxPipeline.from_pretrained(save_flux(tmp_path_factory.mktemp("flux")))


@pytest.fixture(scope="module")
def qwen_image(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from diffusers import QwenImagePipeline

    from tiny_models import save_qwen_image

    return QwenImagePipeline.from_pretrained(save_qwen_image(tmp_path_factory.mktemp("qwen_image")))


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.library}.{row.name}" for row in ROWS])
def test_a_private_api_is_there_and_does_what_is_relied_upon(row: Row, request: pytest.FixtureRequest) -> None:
    pkgutil.resolve_name(f"{row.library}.{row.name.partition('(')[0]}")
    row.check(**{name: request.getfixturevalue(name) for name in inspect.signature(row.check).parameters})


FILES = [f for folder in FOLDERS for f in sorted((ROOT / folder).glob("**/*.py")) if "private_apis" not in f.name]
TREES = {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in FILES}
OURS = {*FOLDERS, *(file.stem for file in FILES), *(file.parent.name for file in FILES)}  # names of modules


def defined(tree: ast.Module) -> Iterator[str]:
    """What a file gives modules, classes and objects of its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) in ("self", "cls"):
            yield node.attr
        if isinstance(node, ast.Module | ast.ClassDef):
            for each in node.body:
                targets = each.targets if isinstance(each, ast.Assign) else [getattr(each, "target", None)]
                yield from (name.id for target in targets if target for name in ast.walk(target) if isinstance(name, ast.Name))


def underscored(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of attributes, imports, arguments and texts with one underscore before them; dunders have two."""
    pieces = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        names: list[Any] = []
        match node:
            case ast.Attribute(attr=name) | ast.keyword(arg=name):
                names = [name]
            case ast.Constant(value=str(name)) if id(node) not in pieces:
                names = [name]
            case ast.Import(names=modules):
                names = [part for module in modules for part in module.name.split(".")]
            case ast.ImportFrom(module=module, names=found):
                names = [*(module or "").split("."), *(each.name for each in found)]
        yield from ((node.lineno, name) for name in names if name and UNDERSCORED.fullmatch(name))


def replaced(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of what is set on a third party's module or class, by ``=`` or by monkeypatch."""
    third = set()
    for node in ast.walk(tree):
        module = node.module if isinstance(node, ast.ImportFrom) else None
        for each in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
            if (module or each.name).partition(".")[0] not in OURS | sys.stdlib_module_names:
                third.add(each.asname or (each.name if module else each.name.partition(".")[0]))
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name, value=owner, ctx=ast.Store() | ast.Del()):
                pass
            case ast.Call(func=ast.Attribute(attr="setattr"), args=[owner, ast.Constant(value=name), *_]):
                pass
            case _:
                continue
        if re.match(r"\w*", ast.unparse(owner))[0] in third:
            yield node.lineno, str(name)


def test_the_table_has_all_that_the_source_uses_and_nothing_else_with_an_underscore() -> None:
    own = {name for tree in TREES.values() for name in defined(tree)} | DOCUMENTED
    used = [(f, n, name) for f, tree in TREES.items() for n, name in underscored(tree) if name not in own]
    used += [(f, n, name) for f, tree in TREES.items() for n, name in replaced(tree)]
    known = {word for row in ROWS for word in re.findall(r"\w+", row.name)}
    missing = [f"{name} ({file}:{line})" for file, line, name in used if name not in known]
    assert not missing, f"each wants a row: {', '.join(missing)}"
    gone = {name for name in known if UNDERSCORED.fullmatch(name)} - {name for *_, name in used}
    assert not gone, f"rows that nothing uses any more: {gone}"


def test_the_search_sees_what_it_is_for() -> None:
    tree = ast.parse(
        "import a._b\nfrom a import _c\nx._d = y(_e=1)\ngetattr(x, '_f')\nf'_g{x}'\nx.__h__\na.i.j = 1\nm.setattr(a, 'k', 2)"
    )
    assert [name for _, name in underscored(tree)] == ["_b", "_c", "_d", "_e", "_f"]
    assert sorted(name for _, name in replaced(tree)) == ["j", "k"]
    assert set(defined(ast.parse("_a = 1\ndef _b(): self._c = x._d\nclass _E:\n    _f: int"))) == {"_a", "_b", "_c", "_E", "_f"}
