//! Frames over RTT: channel 0 down for requests, channel 0 up for responses.
//!
//! All of it, control block included, lives in the linker's TRANSPORT region, where the host looks
//! for it. The up channel blocks when it is full: a response is never cut short, and the host always
//! reads what it asked for.

use core::mem::MaybeUninit;

use cbin_nn_protocol::{BoardError, MAX_FILE_BYTES, MAX_FRAME_BYTES, Response, encode};
use rtt_target::{ChannelMode::BlockIfFull, DownChannel, UpChannel, rtt_init};

/// A frame in the making, on its way in or out.
type Frame = [u8; MAX_FRAME_BYTES];

/// Incoming frames.
pub struct Receiver {
    channel: DownChannel,
    frame: &'static mut Frame,
    /// Bytes of `frame` that hold something.
    filled: usize,
    /// Bytes of `frame` that belong to a frame already handed out.
    used: usize,
    /// The frame overran, and what follows up to the next zero is the rest of it.
    overrun: bool,
}

/// Outgoing frames.
pub struct Sender {
    channel: UpChannel,
    frame: &'static mut Frame,
}

/// Sets RTT up, which shows the host that the board is there. To be called once.
pub fn start() -> (Receiver, Sender) {
    #[unsafe(link_section = ".transport.frames")]
    static mut FRAMES: MaybeUninit<[Frame; 2]> = MaybeUninit::uninit();

    let channels = rtt_init! {
        up: {
            0: { size: 1024, mode: BlockIfFull, name: "cbin-nn", section: ".transport.up" }
        }
        down: {
            0: { size: 1024, mode: BlockIfFull, name: "cbin-nn", section: ".transport.down" }
        }
        section_cb: ".transport.control_block"
    };
    let frames = &raw mut FRAMES;
    // SAFETY: `rtt_init!` panics when it is reached a second time, so this is the only reference; and
    // zeros, which are valid bytes, are written before it is made. (In place: two kilobytes that
    // passed through the stack would lie under everything that `Run` reports.)
    let frames = unsafe {
        frames.write_bytes(0, 1);
        (*frames).assume_init_mut()
    };
    let [incoming, outgoing] = frames;
    let receiver = Receiver { channel: channels.down.0, frame: incoming, filled: 0, used: 0, overrun: false };
    let sender = Sender { channel: channels.up.0, frame: outgoing };
    (receiver, sender)
}

impl Receiver {
    /// Moves what follows the first `count` bytes to the beginning. That is hardly ever anything, since the host waits
    /// for each answer: by exchanging bytes, this takes a few instructions of code and `memmove` 1.6 KB.
    fn discard(&mut self, count: usize) {
        self.filled -= count;
        for at in 0..self.filled {
            self.frame.swap(at, at + count);
        }
    }

    /// Waits for the next frame that is not empty; its terminating zero is included.
    ///
    /// `idle` is called whenever there is nothing to read, with how often that was so in a row.
    pub fn receive(&mut self, mut idle: impl FnMut(u32)) -> Result<&mut [u8], BoardError> {
        self.discard(self.used);
        self.used = 0;

        let mut scanned = 0;
        let mut polls = 0;
        loop {
            let zero = self.frame[scanned..self.filled].iter().position(|&byte| byte == 0);
            if let Some(zero) = zero {
                let end = scanned + zero + 1;
                if self.overrun {
                    self.overrun = false;
                    self.used = end;
                    return Err(BoardError::FrameTooLong);
                }
                if end > 1 {
                    self.used = end;
                    return Ok(&mut self.frame[..end]);
                }
                self.discard(end);
                continue;
            }
            if self.filled == self.frame.len() {
                self.overrun = true;
                self.filled = 0;
            }
            scanned = self.filled;
            self.filled += self.channel.read(&mut self.frame[self.filled..]);
            if self.filled == scanned {
                idle(polls);
                polls = polls.saturating_add(1);
            } else {
                polls = 0;
            }
        }
    }
}

impl Sender {
    /// Sends a response, waiting for the host to make room.
    pub fn send(&mut self, response: &Response<'_>) {
        // Every response is made to fit: payloads keep to MAX_CHUNK_BYTES.
        if let Ok(length) = encode(response, self.frame) {
            self.channel.write(&self.frame[..length]);
        }
    }
}

/// Sends a last response, from a context that has nothing in hand.
///
/// The leading zero cuts off what the runner may have been sending when it was stopped.
pub fn send_last(response: &Response<'_>) {
    let mut frame = [0; MAX_FILE_BYTES + 32];
    // SAFETY: reads the control block, which is zero or complete, since interrupts are off and this
    // core alone writes it; nothing else runs any more that could use the channel.
    if let Some(mut channel) = unsafe { UpChannel::conjure(0) } {
        channel.set_mode(BlockIfFull);
        if let Ok(length) = encode(response, &mut frame[1..]) {
            channel.write(&frame[..=length]);
        }
    }
}
