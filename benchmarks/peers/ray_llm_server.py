"""Ray Serve LLM over vLLM on the CPU, as one program; runs in the environment `ray`.

python ray_llm_server.py MODEL_FOLDER --name smol --port 18142 --cores 0-1
"""

import argparse
import logging
import signal

import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app  # pyright: ignore[reportMissingImports]

MAX_RUNNING = 64
MAX_MODEL_LEN = 2048


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--cores", required=True, help="for vLLM's threads, e.g. 0-1")
    parser.add_argument("--threads", required=True)
    parser.add_argument("--kv-gib", default="1")
    options = parser.parse_args()
    # More logical CPUs than there are: Ray counts what its own actors reserve, not what they use.
    ray.init(num_cpus=8, include_dashboard=False, object_store_memory=200 * 2**20, logging_level=logging.WARNING)
    serve.start(http_options={"host": "127.0.0.1", "port": options.port})
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": options.kv_gib,
        "VLLM_CPU_OMP_THREADS_BIND": options.cores,
        # Ray sets it to 1 for its workers.
        "OMP_NUM_THREADS": options.threads,
        "HF_HUB_OFFLINE": "1",
    }
    config = LLMConfig(
        model_loading_config={"model_id": options.name, "model_source": options.model},
        accelerator_config={"kind": "cpu"},  # pyright: ignore[reportArgumentType]  becomes a CPUConfig
        deployment_config={"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}},
        engine_kwargs={"max_model_len": MAX_MODEL_LEN, "max_num_seqs": MAX_RUNNING},
        runtime_env={"env_vars": environment},
        log_engine_metrics=False,
    )
    serve.run(build_openai_app({"llm_configs": [config]}), blocking=False)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
