//! Decodes packets to pictures.

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

/// Upper bound of decoder threads: each may hold several pictures, which would make memory grow with the cores.
const DECODER_THREADS_MAX: usize = 4;

/// The decoder of one stream, with its last picture.
pub struct StreamDecoder(pub(super) Coder);

/// The library that decodes.
pub(super) enum Coder {
    /// FFmpeg, and its last picture.
    Codec {
        decoder: av::decoder::Video,
        picture: av::frame::Video,
        /// Referenced by the decoder's contexts, so it must be dropped after them.
        complaints: Arc<Complaints>,
    },
    /// libjpeg-turbo or `image-webp`, for picture files.
    Pictures(PictureCoder),
}

/// The frames of a picture file behind FFmpeg's interface: a packet in, a picture out.
pub(super) struct PictureCoder {
    frames: PictureFrames,
    /// The times of the packet to decode next.
    packet: Option<PictureTimes>,
    is_ended: bool,
    /// The last decoded picture until it is taken, or the error of decoding it.
    picture: Cell<Option<Result<RgbImage>>>,
}

/// Result of [`StreamDecoder::receive`].
pub enum Received {
    /// A picture: see [`StreamDecoder::picture`].
    Picture(PictureTimes),
    /// No picture before the next packet.
    NeedsPacket,
    /// A packet could not be decoded.
    Damaged,
    /// No further pictures.
    End,
}

/// Times and flags of a decoded picture.
#[derive(Debug, Clone, Copy)]
pub struct PictureTimes {
    /// The packet's own presentation time.
    pub pts: Option<i64>,
    /// FFmpeg's estimate from presentation and decoding times.
    pub best_effort: Option<i64>,
    /// Ticks until the next picture, if the container states them.
    pub duration: Option<i64>,
    /// Whether it is a key frame: decoding can start here.
    pub key: bool,
    /// Whether the decoder found damage in it.
    pub corrupt: bool,
}

/// Number of decoder threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// As many as the machine has, up to [`DECODER_THREADS_MAX`].
    Several,
    /// One. FFmpeg conceals damage with parts of other pictures as decoded so far, which with several threads
    /// depends on timing.
    One,
}

impl StreamDecoder {
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

    /// Switches on or off that pictures which no other picture refers to are skipped.
    ///
    /// Only for H.264, whose streams always mark such pictures
    /// (`nal_ref_idc` is 0, ITU-T H.264 section 7.4.1); other codecs decode every picture.
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

    /// Sends a packet; false when the decoder refuses it as damaged.
    pub fn send(&mut self, packet: &Packet) -> bool {
        match &mut self.0 {
            // FFmpeg treats a packet without bytes as the end of the stream.
            Coder::Codec { .. } if packet.data().is_empty() => true,
            Coder::Codec { decoder, .. } => decoder.send_packet(&packet.0).is_ok(),
            Coder::Pictures(pictures) => {
                pictures.packet = Some(times_of_packet(packet));
                true
            }
        }
    }

    /// Signals that no packet follows.
    pub fn send_end(&mut self) {
        match &mut self.0 {
            // The only error is that the end was signalled before.
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

    /// The orientation stated by the last picture itself.
    pub(super) fn orientation(&self) -> Option<Orientation> {
        match &self.0 {
            Coder::Codec { picture, .. } => of_picture(picture),
            Coder::Pictures(_) => None,
        }
    }

    /// Number of warnings of the decoder, on any of its threads. Every fault
    /// of a picture, or of one that it refers to, is counted before the picture is output; its
    /// own flag ([`PictureTimes::corrupt`]) may be set too late.
    pub fn n_complaints(&self) -> u64 {
        match &self.0 {
            Coder::Codec { complaints, .. } => complaints.count(),
            Coder::Pictures(_) => 0,
        }
    }

    /// Drops buffered packets and pictures, to be called after a seek.
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

    /// The last decoded picture, as stored.
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
    // SAFETY: the context is not shared and not open yet.
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
