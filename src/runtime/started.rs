//! A process that a runtime has started.

use std::fmt;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    egress_netns::EgressSockets,
    process::{Handle, Origin},
};

/// A started process: three byte streams and an end.
pub struct Process {
    pub stdin: Box<dyn AsyncWrite + Send + Unpin>,
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    pub stderr: Box<dyn AsyncRead + Send + Unpin>,
    pub handle: Box<dyn Handle>,
    pub origin: Origin,
    /// Sockets at which the process asks for reachable hosts. They exist before the program starts;
    /// connections wait until the sockets are served.
    pub egress_sockets: Option<EgressSockets>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("handle", &self.handle.describe()).finish_non_exhaustive()
    }
}
