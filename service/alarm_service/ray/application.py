"""Alias of `alarm_service.ray.ingress`, which RayService manifests written before it name."""

from alarm_service.ray.ingress import build

__all__ = ["build"]
