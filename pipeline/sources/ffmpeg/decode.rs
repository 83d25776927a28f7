//! Packets to pictures.

use std::ffi::c_int;

use ffmpeg_next::{self as av, ffi};

use super::{
    PIXELS_MAX,
    demux::{Demuxer, Packet},
    log::failed,
};
use crate::error::{Kind, Result};

/// Most decoder threads: each may hold several pictures, and memory must stay flat.
const DECODER_THREADS_MAX: usize = 4;

/// The decoder of one stream, and the picture it gave last.
pub struct Decoder {
    decoder: av::decoder::Video,
    pub(super) picture: av::frame::Video,
}

/// What the decoder gave.
pub enum Received {
    /// A picture: see [`Decoder::picture`].
    Picture(PictureTimes),
    /// Nothing before the next packet.
    NeedsPacket,
    /// A packet was beyond repair.
    Damaged,
    /// Nothing more, ever.
    End,
}

/// What a decoded picture says of itself.
#[derive(Debug, Clone, Copy)]
pub struct PictureTimes {
    /// The packet's own presentation time.
    pub pts: Option<i64>,
    /// The time FFmpeg guesses from presentation and decoding times.
    pub best_effort: Option<i64>,
    /// Ticks until the next picture, if the container says.
    pub duration: Option<i64>,
    /// Whether decoding could start here.
    pub key: bool,
    /// Whether the decoder found damage in it.
    pub corrupt: bool,
}

impl Decoder {
    /// A decoder for the demuxer's stream.
    pub fn open(demuxer: &Demuxer) -> Result<Self> {
        let stream = demuxer.stream()?;
        let failed = |error| {
            failed(
                Kind::BadInput,
                "FFmpeg cannot decode this video stream",
                error,
            )
        };
        let mut context =
            av::codec::Context::from_parameters(stream.parameters()).map_err(failed)?;
        let threads =
            std::thread::available_parallelism().map_or(1, |n| n.get().min(DECODER_THREADS_MAX));
        // SAFETY: the context is ours alone and not open yet.
        unsafe {
            (*context.as_mut_ptr()).thread_count = threads as c_int;
            (*context.as_mut_ptr()).max_pixels = PIXELS_MAX;
            (*context.as_mut_ptr()).pkt_timebase = stream.time_base().into();
        }
        let decoder = context.decoder().video().map_err(failed)?;
        Ok(Self {
            decoder,
            picture: av::frame::Video::empty(),
        })
    }

    /// From now on, leaves out pictures that no other picture needs.
    ///
    /// For H.264 alone, where the stream marks such pictures without fail
    /// (`nal_ref_idc` is 0, ITU-T H.264 section 7.4.1); other codecs decode on.
    pub fn leave_out_unreferenced(&mut self, leave_out: bool) {
        let discard = if leave_out && self.decoder.id() == av::codec::Id::H264 {
            av::Discard::NonReference
        } else {
            av::Discard::Default
        };
        self.decoder.skip_frame(discard);
    }

    /// Hands over a packet; false when the decoder refuses it as damaged.
    pub fn send(&mut self, packet: &Packet) -> bool {
        self.decoder.send_packet(&packet.0).is_ok()
    }

    /// Says that no packet will follow.
    pub fn send_end(&mut self) {
        // The only refusal is that the end has been sent already.
        let _ = self.decoder.send_eof();
    }

    /// The next picture in presentation order.
    pub fn receive(&mut self) -> Received {
        match self.decoder.receive_frame(&mut self.picture) {
            Ok(()) => Received::Picture(self.times()),
            Err(av::Error::Other { errno: ffi::EAGAIN }) => Received::NeedsPacket,
            Err(av::Error::Eof) => Received::End,
            Err(_) => Received::Damaged,
        }
    }

    fn times(&self) -> PictureTimes {
        let picture = &self.picture;
        PictureTimes {
            pts: picture.pts(),
            best_effort: picture.timestamp(),
            duration: Some(picture.packet().duration).filter(|&d| d > 0),
            key: picture.is_key(),
            corrupt: picture.is_corrupt() || picture.has_decode_errors(),
        }
    }

    /// Forgets everything in flight, before packets from elsewhere follow.
    pub fn flush(&mut self) {
        self.decoder.flush();
    }
}
