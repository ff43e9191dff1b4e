//! The network namespace of a container, where its engine is on this machine.

use std::fs::{self, File};

use bollard::Docker;

use crate::process::LaunchFailure;

use super::{Fault, failure};

/// Opens it.
///
/// # Errors
/// Where the container's process can't be seen from here, or is another one.
pub(super) async fn of(docker: &Docker, id: &str) -> Result<File, LaunchFailure> {
    let container = docker.inspect_container(id, None).await.map_err(|error| {
        let fault = Fault::of("say which process the container is")(error);
        failure(fault.to_string(), "see that the engine is well: `portcullis doctor`")
    })?;
    let pid = container.state.and_then(|state| state.pid).filter(|pid| *pid > 0);
    let Some(pid) = pid else {
        return Err(failure(
            "the container that holds its network ended before its way out was there",
            "see that the engine is well: `portcullis doctor`",
        ));
    };
    let elsewhere = || {
        failure(
            "the engine's processes can't be seen from here, so `egress` can't be given to a container",
            "run the proxy as root on the engine's own machine, and in its process namespace, or the \
             server in the sandbox (`runtime = \"sandbox\"`)",
        )
    };
    let namespace = File::open(format!("/proc/{pid}/ns/net")).map_err(|_| elsewhere())?;
    // After that: whoever has the number by now is found out. The engine of another machine, or a
    // process namespace around us, gives numbers that are somebody else's here.
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(|_| elsewhere())?;
    if id.len() < 12 || !groups.contains(id) {
        return Err(elsewhere());
    }
    Ok(namespace)
}
