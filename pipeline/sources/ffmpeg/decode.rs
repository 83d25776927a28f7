//! Packets to pictures.

use std::{cell::Cell, ffi::c_int, ptr, sync::Arc};

use ffmpeg_next::{self as av, ffi};

use super::{
    demux::{Body, Demuxer, Packet},
    log::{Complaints, failed},
};
use crate::{
    error::{Error, Kind, Result},
    flow::RgbImage,
    sources::{info::PIXELS_MAX, orientation::Orientation, pictures::PictureFrames},
};

/// Most decoder threads: each may hold several pictures, and memory must stay flat.
const DECODER_THREADS_MAX: usize = 4;

/// The decoder of one stream, and the picture it gave last.
pub struct Decoder(pub(super) Coder);

/// Who decodes.
pub(super) enum Coder {
    /// FFmpeg, and the picture it gave last.
    Codec {
        decoder: av::decoder::Video,
        picture: av::frame::Video,
        /// Named by the decoder's contexts, so it must go after them.
        complaints: Arc<Complaints>,
    },
    /// The libraries of picture files.
    Pictures(PictureCoder),
}

/// A picture file's frames by FFmpeg's manners: a packet in, a picture out.
pub(super) struct PictureCoder {
    frames: PictureFrames,
    /// The times of the packet that is not decoded yet.
    packet: Option<PictureTimes>,
    is_ended: bool,
    /// The picture that was decoded last, until somebody takes it, or why there is none.
    picture: Cell<Option<Result<RgbImage>>>,
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

/// How many threads decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// As many as the machine has, within reason.
    Several,
    /// One. FFmpeg conceals damage with what other pictures show by then, and with several threads
    /// these are not always equally far.
    One,
}

impl Decoder {
    /// A decoder for the demuxer's stream.
    pub fn open(demuxer: &Demuxer, threads: Threads) -> Result<Self> {
        Ok(Self(match &demuxer.body {
            Body::Container(container) => open_codec(&container.stream()?, threads)?,
            Body::Pictures { file, .. } => Coder::Pictures(PictureCoder {
                frames: file.frames()?,
                packet: None,
                is_ended: false,
                picture: Cell::new(None),
            }),
        }))
    }

    /// From now on, leaves out pictures that no other picture needs.
    ///
    /// For H.264 alone, where the stream marks such pictures without fail
    /// (`nal_ref_idc` is 0, ITU-T H.264 section 7.4.1); other codecs decode on.
    pub fn leave_out_unreferenced(&mut self, leave_out: bool) {
        let Coder::Codec { decoder, .. } = &mut self.0 else {
            return;
        };
        let discard = if leave_out && decoder.id() == av::codec::Id::H264 {
            av::Discard::NonReference
        } else {
            av::Discard::Default
        };
        decoder.skip_frame(discard);
    }

    /// Hands over a packet; false when the decoder refuses it as damaged.
    pub fn send(&mut self, packet: &Packet) -> bool {
        match &mut self.0 {
            // FFmpeg takes a packet without bytes for the end of the stream.
            Coder::Codec { .. } if packet.data().is_empty() => true,
            Coder::Codec { decoder, .. } => decoder.send_packet(&packet.0).is_ok(),
            Coder::Pictures(pictures) => {
                pictures.packet = Some(times_of_packet(packet));
                true
            }
        }
    }

    /// Says that no packet will follow.
    pub fn send_end(&mut self) {
        match &mut self.0 {
            // The only refusal is that the end has been sent already.
            Coder::Codec { decoder, .. } => drop(decoder.send_eof()),
            Coder::Pictures(pictures) => pictures.is_ended = true,
        }
    }

    /// The next picture in presentation order.
    pub fn receive(&mut self) -> Received {
        match &mut self.0 {
            Coder::Pictures(pictures) => pictures.receive(),
            Coder::Codec {
                decoder, picture, ..
            } => match decoder.receive_frame(picture) {
                Ok(()) => Received::Picture(times_of_picture(picture)),
                Err(av::Error::Other { errno: ffi::EAGAIN }) => Received::NeedsPacket,
                Err(av::Error::Eof) => Received::End,
                Err(_) => Received::Damaged,
            },
        }
    }

    /// The turn that stands on the last picture itself.
    pub(super) fn orientation(&self) -> Option<Orientation> {
        match &self.0 {
            Coder::Codec { picture, .. } => of_picture(picture),
            Coder::Pictures(_) => None,
        }
    }

    /// How often the decoder has complained of what it was given, on any of its threads. Whatever is
    /// wrong with a picture, or with one that it refers to, was counted before it comes out: its
    /// own marks ([`PictureTimes::corrupt`]) may come too late.
    pub fn n_complaints(&self) -> u64 {
        match &self.0 {
            Coder::Codec { complaints, .. } => complaints.count(),
            Coder::Pictures(_) => 0,
        }
    }

    /// Forgets everything in flight, before packets from elsewhere follow.
    pub fn flush(&mut self) {
        match &mut self.0 {
            Coder::Codec { decoder, .. } => decoder.flush(),
            Coder::Pictures(pictures) => pictures.packet = None,
        }
    }
}

impl PictureCoder {
    fn receive(&mut self) -> Received {
        let Some(times) = self.packet.take() else {
            return match self.is_ended {
                true => Received::End,
                false => Received::NeedsPacket,
            };
        };
        let decoded = self.frames.decode();
        let corrupt = decoded.as_ref().is_ok_and(|(_, corrupt)| *corrupt);
        self.picture.set(Some(decoded.map(|(image, _)| image)));
        Received::Picture(PictureTimes { corrupt, ..times })
    }

    /// The picture that was decoded last, as stored.
    pub(super) fn take(&self) -> Result<RgbImage> {
        let missing = || Err(Error::new(Kind::Internal, "no picture is decoded"));
        self.picture.take().unwrap_or_else(missing)
    }
}

fn open_codec(stream: &av::Stream<'_>, threads: Threads) -> Result<Coder> {
    let failed = |error| {
        failed(
            Kind::BadInput,
            "FFmpeg cannot decode this video stream",
            error,
        )
    };
    let mut context = av::codec::Context::from_parameters(stream.parameters()).map_err(failed)?;
    let threads = match threads {
        Threads::Several => {
            std::thread::available_parallelism().map_or(1, |n| n.get().min(DECODER_THREADS_MAX))
        }
        Threads::One => 1,
    };
    let complaints = Arc::new(Complaints::default());
    // SAFETY: the context is ours alone and not open yet.
    unsafe {
        (*context.as_mut_ptr()).thread_count = threads as c_int;
        (*context.as_mut_ptr()).max_pixels = PIXELS_MAX;
        (*context.as_mut_ptr()).opaque = Arc::as_ptr(&complaints).cast_mut().cast();
        (*context.as_mut_ptr()).pkt_timebase = stream.time_base().into();
    }
    Ok(Coder::Codec {
        decoder: context.decoder().video().map_err(failed)?,
        picture: av::frame::Video::empty(),
        complaints,
    })
}

fn times_of_picture(picture: &av::frame::Video) -> PictureTimes {
    PictureTimes {
        pts: picture.pts(),
        best_effort: picture.timestamp(),
        duration: Some(picture.packet().duration).filter(|&d| d > 0),
        key: picture.is_key(),
        corrupt: picture.is_corrupt() || picture.has_decode_errors(),
    }
}

fn times_of_packet(packet: &Packet) -> PictureTimes {
    PictureTimes {
        pts: packet.pts(),
        best_effort: packet.pts(),
        duration: Some(packet.0.duration()),
        key: packet.is_key(),
        corrupt: false,
    }
}

fn of_picture(picture: &av::frame::Video) -> Option<Orientation> {
    let kind = ffi::AVFrameSideDataType::AV_FRAME_DATA_DISPLAYMATRIX;
    // SAFETY: the frame is alive; the bytes are copied before it can change, and only when there are 36.
    let matrix = unsafe {
        let data = ffi::av_frame_get_side_data(picture.as_ptr(), kind);
        (!data.is_null() && (*data).size >= 36)
            .then(|| ptr::read_unaligned((*data).data.cast::<[i32; 9]>()))
    };
    matrix.map(Orientation::from_display_matrix)
}
