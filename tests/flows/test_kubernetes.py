"""docker/kubernetes-job-template.json on a real Prefect server; `tests/test_docker.py` looks at what it says."""

import json
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import PrefectHTTPStatusError

from flows.deploy import Plan, deploy
from flows.recipes import RECIPES

TEMPLATE = Path(__file__).resolve().parents[2] / "docker" / "kubernetes-job-template.json"


def test_prefects_server_takes_the_kubernetes_template_and_the_deployments_on_it(server):
    with get_client(sync_client=True) as client:
        pool = WorkPoolCreate(
            name="cluster", type="kubernetes", base_job_template=json.loads(TEMPLATE.read_text(encoding="utf-8"))
        )
        client.create_work_pool(pool)
        done = deploy(Plan(RECIPES["video"](), ("/videos",), "/store", "", "cluster", False))
        assert done.pool == "cluster"
        made = client.read_deployment_by_name("train-csip/train-csip")
        assert made.work_pool_name == "cluster"
        client.create_flow_run_from_deployment(made.id, job_variables={"gpus": 2})
        with pytest.raises(PrefectHTTPStatusError) as caught:
            client.create_flow_run_from_deployment(made.id, job_variables={"gpus": "many"})
    assert "many" in caught.value.response.text
