//! The socket between worker and supervisor: one packet, one frame, with descriptors.
//!
//! Both ends use it without blocking: `WouldBlock` comes back to the caller, who polls.

use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::protocol::INLINE_LIMIT;
use crate::wire::Encoding;

/// Stands for "the frame is in the last descriptor": a byte that MessagePack never uses.
const IN_MEMFD: u8 = 0xc1;
/// Three of the task and one with the frame; or so many that are kept.
const MAX_DESCRIPTORS: usize = 64;

/// A connected pair, closed on exec: (worker's end, supervisor's end).
///
/// # Errors
/// Out of descriptors.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?)
}

/// A frame ready to be sent, in the packet or beside it. Not printed: a task's environment may be in it.
pub struct Outgoing {
    body: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Outgoing({} bytes, {} descriptors)", self.body.len(), self.descriptors.len())
    }
}

impl Outgoing {
    /// Writes `value`; a large one goes to a sealed memfd.
    ///
    /// # Errors
    /// No memory for the memfd.
    pub fn new<T: Serialize>(value: &T, mut descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let frame = Encoding::Msgpack.encode(value).map_err(io::Error::other)?;
        if frame.len() <= INLINE_LIMIT {
            return Ok(Self { body: frame.to_vec(), descriptors });
        }
        let memfd = rustix::fs::memfd_create("windlass-frame", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let mut file = std::fs::File::from(memfd);
        file.write_all(&frame)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
        descriptors.push(file.into());
        Ok(Self { body: vec![IN_MEMFD], descriptors })
    }

    /// Sends it.
    ///
    /// # Errors
    /// `WouldBlock` when the socket is full, `BrokenPipe` when the other end is gone.
    pub fn send(&self, socket: impl AsFd) -> io::Result<()> {
        let borrowed: Vec<BorrowedFd<'_>> = self.descriptors.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
        }
        rustix::net::sendmsg(socket, &[IoSlice::new(&self.body)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        Ok(())
    }
}

/// Room for one packet, to be used again for each.
#[must_use]
pub fn packet_buffer() -> Vec<u8> {
    vec![0; INLINE_LIMIT]
}

/// Receives one value with its descriptors; `None` when the other end is gone.
///
/// # Errors
/// `WouldBlock` when nothing is there; `InvalidData` for a frame that is not `T`.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = match rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
        Ok(received) => received,
        Err(Errno::CONNRESET) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            descriptors.extend(fds);
        }
    }
    let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(bad("packet truncated".to_owned()));
    }
    // CTRUNC, descriptors dropped because this process has too many open, is no reason to give up everything:
    // the request is read, and refused for want of its descriptors.
    let mut frame = &buffer[..received.bytes];
    let mut large = Vec::new();
    if frame == [IN_MEMFD] {
        let memfd = descriptors.pop().ok_or_else(|| bad("large frame without its descriptor".to_owned()))?;
        let mut file = std::fs::File::from(memfd);
        file.rewind()?;
        file.read_to_end(&mut large)?;
        frame = &large;
    }
    let value = Encoding::Msgpack.decode(frame).map_err(|e| bad(e.to_string()))?;
    Ok(Some((value, descriptors)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::protocol::Request;

    #[test]
    fn frames_of_any_size_arrive_with_their_descriptors() {
        let (a, b) = pair().expect("socket pair");
        for size in [0, 1000, INLINE_LIMIT, 3 << 20] {
            let sent = "x".repeat(size);
            let null = || std::fs::File::open("/dev/null").expect("null").into();
            Outgoing::new(&sent, vec![null(), null(), null()]).and_then(|o| o.send(&a)).expect("sends");
            let (got, fds) = receive::<String>(&b, &mut packet_buffer()).expect("receives").expect("not closed");
            assert_eq!((got.len(), fds.len()), (size, 3));
        }
    }

    #[test]
    fn silence_closing_and_nonsense_are_told_apart() {
        let (a, b) = pair().expect("socket pair");
        assert_eq!(receive::<Request>(&b, &mut packet_buffer()).expect_err("nothing there").kind(), io::ErrorKind::WouldBlock);
        Outgoing::new(&42u8, vec![]).and_then(|o| o.send(&a)).expect("sends");
        assert_eq!(receive::<Request>(&b, &mut packet_buffer()).expect_err("not a request").kind(), io::ErrorKind::InvalidData);
        drop(a);
        assert!(receive::<Request>(&b, &mut packet_buffer()).expect("closed").is_none());
    }
}
