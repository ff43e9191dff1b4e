//! Network namespace of a container whose engine is on this machine.

use std::fs::{self, File};

use bollard::Docker;

use crate::process::LaunchFailure;

use super::{Fault, failure};

/// Opens the namespace.
///
/// # Errors
/// If the container's process is not visible from here, or is another one.
pub(super) async fn of(docker: &Docker, id: &str) -> Result<File, LaunchFailure> {
    let container = docker.inspect_container(id, None).await.map_err(|error| {
        let fault = Fault::of("report the container's process")(error);
        failure(fault.to_string(), "check the engine: `portcullis doctor`")
    })?;
    let pid = container.state.and_then(|state| state.pid).filter(|pid| *pid > 0);
    let Some(pid) = pid else {
        return Err(failure(
            "the pause container ended before the egress sockets were open",
            "check the engine: `portcullis doctor`",
        ));
    };
    let elsewhere = || {
        failure(
            "the engine's processes are not visible from here, so a container cannot have `egress`",
            "run the proxy as root on the engine's machine, in its process namespace; or run the \
             server in the sandbox (`runtime = \"sandbox\"`)",
        )
    };
    let namespace = File::open(format!("/proc/{pid}/ns/net")).map_err(|_| elsewhere())?;
    // Read after that, so a reused process number is detected. With an engine on another machine or
    // in another process namespace, the number belongs to some other process here.
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(|_| elsewhere())?;
    if id.len() < 12 || !groups.contains(id) {
        return Err(elsewhere());
    }
    Ok(namespace)
}
