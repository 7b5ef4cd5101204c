//! Packets with descriptors over the `SOCK_SEQPACKET` socket, for both ends.

use std::io::{IoSlice, IoSliceMut, Read as _, Seek as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recvmsg, sendmsg, socketpair,
};

use super::protocol::INLINE_LIMIT;

/// First byte of a packet whose frame is in it.
const INLINE: u8 = 0;
/// First byte of a packet whose frame is in the last descriptor.
const BY_DESCRIPTOR: u8 = 1;
/// Most descriptors of one packet: standard input, output, error and the frame.
const MAX_FDS: usize = 4;

/// Both ends, non-blocking.
///
/// # Errors
/// When the kernel has no more descriptors.
pub fn pair() -> std::io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?)
}

/// One packet to be sent.
#[derive(Debug)]
pub struct Packet {
    body: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Packet {
    /// Of `frame`, with descriptors for the other end.
    ///
    /// # Errors
    /// When a large frame cannot be put into memory of its own.
    pub fn new(frame: &[u8], mut fds: Vec<OwnedFd>) -> std::io::Result<Self> {
        if frame.len() < INLINE_LIMIT {
            let mut body = Vec::with_capacity(frame.len() + 1);
            body.push(INLINE);
            body.extend_from_slice(frame);
            return Ok(Self { body, fds });
        }
        let mut file = std::fs::File::from(memfd_create("frame", MemfdFlags::CLOEXEC)?);
        file.write_all(frame)?;
        file.rewind()?;
        fds.push(file.into());
        Ok(Self { body: vec![BY_DESCRIPTOR], fds })
    }

    /// Sends it, all or nothing.
    ///
    /// # Errors
    /// `WouldBlock` when the other end is behind; others when it is gone.
    pub fn send(&self, socket: BorrowedFd<'_>) -> std::io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<BorrowedFd<'_>> = self.fds.iter().map(AsFd::as_fd).collect();
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(std::io::Error::from(Errno::MSGSIZE));
        }
        sendmsg(socket, &[IoSlice::new(&self.body)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// One packet that came: its frame and descriptors. None when the other end is gone.
///
/// # Errors
/// `WouldBlock` when nothing is there; others when the socket is broken.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> std::io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = match recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
        Err(Errno::CONNRESET) => return Ok(None),
        other => other?,
    };
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    match buffer[..received.bytes].split_first() {
        None => Ok(None),
        Some((&INLINE, frame)) => Ok(Some((frame.to_vec(), fds))),
        Some(_) => {
            let file = fds.pop().ok_or_else(|| std::io::Error::from(Errno::BADMSG))?;
            let mut frame = Vec::new();
            std::fs::File::from(file).read_to_end(&mut frame)?;
            Ok(Some((frame, fds)))
        }
    }
}
