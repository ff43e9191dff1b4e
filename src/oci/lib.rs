//! Artifacts of OCI registries, pulled by digest.
