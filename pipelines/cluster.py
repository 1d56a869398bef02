"""Runs and recurring runs on a Kubeflow cluster: what is sent, and sent once.

A pipeline file is uploaded as the version that its hash names, so the same file is there once. A run of Kubeflow has the name
of the MARBLE run that it makes; a schedule is found by its name.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from kfp_server_api import (
    ApiClient,
    ApiException,
    PipelineUploadServiceApi,
    V2beta1Pipeline,
    V2beta1RecurringRun,
    V2beta1Run,
)

from marble_core.types import MarbleError
from marble_kubeflow.pipelines.connection import Target, Unreachable, connect, spoken
from marble_kubeflow.pipelines.order import POLICY, Order
from marble_kubeflow.pipelines.package import Package, Parameters
from marble_kubeflow.pipelines.run_state import FINAL, stages_of, state_of, waits
from marble_kubeflow.pipelines.schedule_runs import UUID, succession

PAGE = 100
EQUALS = 1  # kfp's number for it in a filter
OUTAGE = 300.0  # seconds for which a server that has answered before may be away while a run is waited for


@dataclass(frozen=True)
class Cluster:
    """Kubeflow Pipelines at ``target``. Its methods raise MarbleError with one sentence for whatever the server refuses."""

    target: Target
    client: Any = field(repr=False)

    @classmethod
    def at(cls, target: Target) -> Cluster:
        return cls(target, connect(target))

    def _spoken(self) -> AbstractContextManager[None]:
        return spoken(self.target)

    @property
    def namespace(self) -> str | None:
        return self.client.get_user_namespace() or None

    # Pipelines

    def version_of(self, package: Package) -> Any:
        """The package's version of its pipeline, uploaded if it is not there yet."""
        with self._spoken():
            pipeline_id = self._pipeline_id(package.name)
            if found := self._version(pipeline_id, package.version):
                return found
            try:
                tags = {"tags": json.dumps(package.tags)} if package.tags else {}
                upload = PipelineUploadServiceApi(self.client.pipelines.api_client)  # kfp's own method takes no tags
                return upload.upload_pipeline_version(str(package.path), name=package.version, pipelineid=pipeline_id, **tags)
            except ApiException as error:
                if error.status == 409 and (found := self._version(pipeline_id, package.version)):
                    return found  # somebody else has uploaded the same file meanwhile
                raise

    def _pipeline_id(self, name: str) -> str:
        def find() -> str | None:
            pipelines = _pages(lambda **page: self.client.list_pipelines(namespace=self.namespace, **page), "pipelines")
            return next((each.pipeline_id for each in pipelines if each.display_name == name), None)

        if found := find():
            return found
        try:
            new = V2beta1Pipeline(display_name=name, namespace=self.namespace)
            return self.client.pipelines.pipeline_service_create_pipeline(pipeline=new).pipeline_id
        except ApiException as error:
            if error.status == 409 and (found := find()):
                return found
            raise

    def _version(self, pipeline_id: str, name: str) -> Any:
        versions = _pages(lambda **page: self.client.list_pipeline_versions(pipeline_id, **page), "pipeline_versions")
        return next((each for each in versions if name in (each.display_name, each.name)), None)

    def _ordered(self, order: Order) -> dict[str, Any]:
        """What a run and a recurring run have in common."""
        version = self.version_of(order.package)
        with self._spoken():
            experiment = self.client.create_experiment(order.experiment, namespace=self.namespace)  # or the one that is there
        return {
            "experiment_id": experiment.experiment_id,
            "job_name": order.name,
            "params": dict(order.parameters),
            "pipeline_id": version.pipeline_id,
            "version_id": version.pipeline_version_id,
            "service_account": order.service_account,
        }

    # Runs

    def submit(self, order: Order) -> V2beta1Run:
        """Start the run. Raises MarbleError where one of that name has not ended yet: both would train the same model."""
        if active := next((run for run in self.runs(order.name) if run.state not in FINAL), None):
            raise MarbleError(
                f"The run {order.name} is there already and is {active.state}: follow it by marble runs wait {order.name}."
            )
        ordered = self._ordered(order)
        with self._spoken():
            return self.client.run_pipeline(**ordered)

    def runs(self, name: str = "", limit: int | None = None) -> list[V2beta1Run]:
        """The runs of the namespace, or those of one name; newest first."""
        return list(islice(self.each_run(name, limit or PAGE), limit))

    def each_run(self, name: str = "", size: int = PAGE) -> Iterator[V2beta1Run]:
        """The same, asked for page by page."""
        wanted = {"operation": EQUALS, "key": "display_name", "stringValue": name}
        asked = {"filter": json.dumps({"predicates": [wanted]})} if name else {}

        def listed(**page: Any) -> Any:
            return self.client.list_runs(namespace=self.namespace, sort_by="created_at desc", **asked, **page)

        with self._spoken():
            yield from _pages(listed, "runs", min(size, PAGE))

    def run(self, name: str) -> V2beta1Run:
        """The newest run of that name, or the one of that id, with all that the server says of it."""
        named = self.runs(name, limit=1)
        if not named and not UUID.fullmatch(name):
            raise MarbleError(f"There is no run {name!r} at {self.target.shown}: marble runs list says which there are.")
        with self._spoken():
            return self.client.get_run(named[0].run_id if named else name)

    def cancel(self, name: str) -> V2beta1Run:
        """Ask a run to end. Raises MarbleError where it has ended otherwise."""
        run = self.run(name)
        if run.state in FINAL and state_of(run) != "CANCELED":
            raise MarbleError(f"The run {name} has ended already: it is {run.state}.")
        if state_of(run) not in ("CANCELING", "CANCELED"):
            with self._spoken():
                self.client.terminate_run(run.run_id)
        return run

    def wait(self, name: str, seconds: float | None, every: float, report: Callable[[V2beta1Run], None]) -> V2beta1Run | None:
        """The run when it has ended, whatever its end is; None after ``seconds``. ``report`` sees it when its state or that of a stage changes, and when a pod
        has waited for a minute."""
        run, said = self.run(name), ("", dict[str, str](), "")
        begun = answered = time.monotonic()
        while True:
            if (now := (state_of(run), stages_of(run), waits(run))) != said:
                said = now
                report(run)
            if run.state in FINAL:
                return run
            if seconds is not None and time.monotonic() - begun + every > seconds:
                return None
            time.sleep(every)
            try:
                with self._spoken():
                    run, answered = self.client.get_run(run.run_id), time.monotonic()
            except Unreachable:
                if time.monotonic() - answered > OUTAGE:
                    raise

    # Schedules

    def schedules(self) -> list[V2beta1RecurringRun]:
        with self._spoken():
            listed = partial(self.client.list_recurring_runs, namespace=self.namespace)
            return list(_pages(listed, "recurring_runs"))

    def schedule(self, name: str) -> list[V2beta1RecurringRun]:
        """The recurring runs of that name: one, unless an update was cut short. Raises MarbleError where there is none."""
        found = [each for each in self.schedules() if each.display_name == name]
        if not found:
            raise MarbleError(f"There is no schedule {name!r}: marble schedule list says which there are.")
        return found

    def create_schedule(self, order: Order, replace: bool = False) -> tuple[V2beta1RecurringRun, bool]:
        """And whether it is new. One of that name that does something else is replaced, paused or not as it was; without
        ``replace`` MarbleError is raised there."""
        others = sorted(
            (each for each in self.schedules() if each.display_name == order.name), key=lambda each: each.created_at
        )
        if len(others) == 1 and self._is_as_ordered(others[0], order):
            return others[0], False
        if others and not replace:
            raise MarbleError(
                f"There is a schedule {order.name!r} already that does something else: change it by marble schedule update "
                f"{order.name}, or choose another name."
            )
        enabled = others[-1].status == "ENABLED" if others else order.enabled
        new = self._create(self._ordered(order), order.cron, enabled, others)
        if others:
            self.delete_schedule(order.name, but=new.recurring_run_id)
        return new, True

    def update_schedule(
        self, name: str, cron: str | None, package: Package | None, given: Mapping[str, str], service_account: str | None
    ) -> V2beta1RecurringRun:
        """Put a schedule in the place of the one of that name; what is not given stays, paused or not.

        Kubeflow cannot change one. The new one is made first, so that a failure leaves a schedule.
        """
        *_, old = there = sorted(self.schedule(name), key=lambda each: each.created_at)
        if not cron and not old.trigger.cron_schedule:
            raise MarbleError(f"The schedule {name!r} has an interval and no cron expression: give one by --cron.")
        reference = old.pipeline_version_reference
        with self._spoken():
            if package is None:
                try:
                    version = self.client.get_pipeline_version(reference.pipeline_id, reference.pipeline_version_id)
                except ApiException as error:
                    if error.status != 404:
                        raise
                    raise MarbleError(
                        f"The pipeline version of the schedule {name!r} has been deleted in Kubeflow: give another by --package."
                    ) from None
        parameters = package.parameters if package else Parameters.of(version.pipeline_spec)
        if package:
            version = self.version_of(package)
        values = parameters.values(given, _parameters_of(old))
        ordered = {
            "experiment_id": old.experiment_id,
            "job_name": name,
            "params": values,
            "pipeline_id": version.pipeline_id,
            "version_id": version.pipeline_version_id,
            "service_account": service_account or old.service_account,
        }
        new = self._create(ordered, cron or old.trigger.cron_schedule.cron, old.status == "ENABLED", there)
        self.delete_schedule(name, but=new.recurring_run_id)
        return new

    def pause_schedule(self, name: str, paused: bool) -> None:
        for each in self.schedule(name):
            with self._spoken():
                change = self.client.disable_recurring_run if paused else self.client.enable_recurring_run
                change(each.recurring_run_id)

    def delete_schedule(self, name: str, but: str = "") -> None:
        """Delete it. Runs that it has started go on: left to itself Kubernetes would delete their workflows with it."""
        for each in self.schedule(name):
            if each.recurring_run_id != but:
                with self._spoken():
                    delete = self.client.recurring_runs.recurring_run_service_delete_recurring_run
                    delete(each.recurring_run_id, propagation_policy="ORPHAN")

    def _create(
        self, ordered: Mapping[str, Any], cron: str | None, enabled: bool, replaced: Sequence[V2beta1RecurringRun]
    ) -> V2beta1RecurringRun:
        more = {"cron_expression": cron, "enabled": enabled, "description": succession(replaced) or None, **POLICY}
        with self._spoken():
            return self.client.create_recurring_run(**ordered, **more)

    def _is_as_ordered(self, there: V2beta1RecurringRun, order: Order) -> bool:
        version = self.version_of(order.package)
        return (
            there.trigger.cron_schedule is not None
            and there.trigger.cron_schedule.cron == order.cron
            and there.pipeline_version_reference.pipeline_version_id == version.pipeline_version_id
            and _parameters_of(there) == dict(order.parameters)
            and (order.service_account or there.service_account) == there.service_account
        )


def _parameters_of(schedule: V2beta1RecurringRun) -> dict[str, Any]:
    """Kubeflow leaves the whole configuration out where there are none."""
    return dict((schedule.runtime_config and schedule.runtime_config.parameters) or {})


def as_json(answer: Any) -> dict[str, Any]:
    """What the server said of a run or a schedule, as JSON, without the pipeline's whole text."""
    said = ApiClient().sanitize_for_serialization(answer)
    return {key: value for key, value in said.items() if key != "pipeline_spec"}


def _pages(ask: Callable[..., Any], name: str, size: int = PAGE) -> Iterator[Any]:
    """Every member of a list that the server answers page by page."""
    token = ""
    while True:
        page = ask(page_token=token, page_size=size)
        yield from getattr(page, name) or ()
        token = page.next_page_token
        if not token:
            return
