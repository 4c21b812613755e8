"""Alias of `alarm_service.ray.ingress`, which older RayService manifests name."""

from alarm_service.ray.ingress import build

__all__ = ["build"]
