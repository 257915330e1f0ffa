"""Prefect flows over the DAG of dvc.yaml."""
