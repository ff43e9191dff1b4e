//! Listening sockets that a service manager passes (`sd_listen_fds(3)`). It holds them while the
//! proxy restarts, so that the connections of clients wait instead of being refused.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use anyhow::{Context as _, bail};
use listenfd::ListenFd;

/// The passed sockets.
#[derive(Debug, Default)]
pub struct PassedSockets(Vec<TcpListener>);

impl PassedSockets {
    /// Takes the sockets from the environment (`LISTEN_FDS`, `LISTEN_PID`). Must be called before
    /// there are other threads, since it changes the environment.
    ///
    /// # Errors
    /// If one is not a listening TCP socket.
    pub fn take() -> io::Result<Self> {
        let mut passed = ListenFd::from_env();
        let sockets = (0..passed.len()).filter_map(|at| passed.take_tcp_listener(at).transpose());
        Ok(Self(sockets.collect::<io::Result<_>>()?))
    }

    /// The socket of this address. `None` if no sockets were passed.
    ///
    /// # Errors
    /// If sockets were passed, and none of this address.
    pub(super) fn of(self, address: SocketAddr) -> anyhow::Result<Option<TcpListener>> {
        let mut others = Vec::new();
        for socket in self.0 {
            let its = socket.local_addr().context("a passed socket has no address")?;
            if its == address {
                return Ok(Some(socket));
            }
            others.push(its.to_string());
        }
        if others.is_empty() {
            return Ok(None);
        }
        bail!(
            "the service manager passed sockets of {}, but `listen.http` is {address}: set both to \
             the same address",
            others.join(", ")
        )
    }
}
