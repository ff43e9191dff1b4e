//! Passing of file descriptors over a socket.

use std::{
    io,
    net::TcpListener,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use nix::{
    cmsg_space,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg},
};

/// Limit of descriptors in one message (the kernel's SCM_MAX_FD).
const MAX_FDS: usize = 253;

/// Sends bytes with descriptors.
pub(super) fn send(to: &UnixStream, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
    sendmsg::<UnixAddr>(
        to.as_raw_fd(),
        &[io::IoSlice::new(bytes)],
        &[ControlMessage::ScmRights(fds)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Receives bytes, and the descriptors that came with them. At the end of the stream there are
/// none.
pub(super) fn receive(
    from: &UnixStream,
    bytes: &mut [u8],
    flags: MsgFlags,
) -> io::Result<Vec<OwnedFd>> {
    let mut space = cmsg_space!([RawFd; MAX_FDS]);
    let mut parts = [io::IoSliceMut::new(bytes)];
    let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(from.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut received = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part {
            received.extend(adopt(&fds));
        }
    }
    Ok(received)
}

/// Sends any number of listening sockets.
pub(super) fn give(to: &UnixStream, sockets: &[TcpListener]) -> io::Result<()> {
    let fds: Vec<_> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    fds.chunks(MAX_FDS).try_for_each(|some| send(to, &[0], some))
}

/// Receives that number of listening sockets, which must have been sent before: it does not wait.
pub(super) fn take(from: &UnixStream, count: usize) -> io::Result<Vec<TcpListener>> {
    let mut sockets = Vec::with_capacity(count);
    while sockets.len() < count {
        let some = receive(from, &mut [0], MsgFlags::MSG_DONTWAIT)?;
        if some.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        sockets.extend(some.into_iter().map(TcpListener::from));
    }
    Ok(sockets)
}

/// Takes ownership of the descriptors of a message.
fn adopt(fds: &[RawFd]) -> Vec<OwnedFd> {
    fds.iter()
        .map(|fd| {
            #[expect(
                unsafe_code,
                reason = "the kernel has just made it for us, nobody else has it"
            )]
            unsafe {
                OwnedFd::from_raw_fd(*fd)
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_arrive_in_order_in_any_number() {
        let (here, there) = UnixStream::pair().unwrap();
        let sockets: Vec<_> =
            (0..MAX_FDS + 3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let port = |socket: &TcpListener| socket.local_addr().unwrap().port();
        give(&here, &sockets).unwrap();
        let taken = take(&there, sockets.len()).unwrap();
        assert!(taken.iter().map(port).eq(sockets.iter().map(port)));
        // Fewer sockets than expected, and none at all.
        give(&here, &sockets[..1]).unwrap();
        assert_eq!(take(&there, 2).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(here);
        assert_eq!(take(&there, 1).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
