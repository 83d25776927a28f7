//! The properties of a file's video stream.

use std::{ffi::c_int, path::Path, ptr};

use ffmpeg_next::{self as av, ffi};

use super::{
    decode::{Received, StreamDecoder, Threads},
    demux::{Body, Container, Demuxer, Read, is_video},
    log::failed,
    names::{codec_name, pixel_format_name},
};
use crate::{
    cancel::Cancel,
    error::{Error, Kind, Result},
    sources::{
        info::{PIXELS_MAX, VideoInfo},
        magic::Magic,
        orientation::Orientation,
        pictures::exif,
        sampler::Rate,
    },
    time::{Pts, TimeBase},
};

/// Packets decoded to find the first frame: more than the delay of any decoder.
const FIRST_PACKETS_MAX: usize = 64;

impl Demuxer {
    /// The stream's properties.
    pub fn info(&self, path: &Path) -> Result<VideoInfo> {
        match &self.body {
            Body::Container(container) => container.info(path, self.time_base, &self.cancel),
            Body::Pictures { file, .. } => file.info(path),
        }
    }
}

impl Container {
    fn info(&self, path: &Path, time_base: TimeBase, cancel: &Cancel) -> Result<VideoInfo> {
        let stream = self.stream()?;
        // SAFETY: the parameters live as long as the stream, which is borrowed from `input`.
        let parameters = unsafe { &*(*stream.as_ptr()).codecpar };
        let container = self.input.format().name().to_owned();
        let still =
            container == "image2" || container.ends_with("_pipe") && container != "yuv4mpegpipe";
        let coded = (parameters.width, parameters.height);
        if coded.0 == 0 || coded.1 == 0 {
            let what = "FFmpeg finds no width and height of the picture";
            return Err(failed(Kind::BadInput, what, av::Error::InvalidData));
        }
        let sample_aspect_ratio = match still {
            // Pillow ignores the pixel density of picture files, so their pixels are square here too.
            true => (1, 1),
            false => self.sample_aspect_ratio(&stream),
        };
        let orientation = match still {
            true => exif::orientation(&std::fs::read(path)?),
            false => of_video(path, &stream, cancel)?,
        };
        let shown = shown_size(coded, sample_aspect_ratio)?;
        let (width, height) = orientation.size(shown);
        let format = pixel_format_name(parameters.format);
        Ok(VideoInfo {
            path: path.to_owned(),
            codec: codec_name(parameters.codec_id),
            width,
            height,
            coded_width: coded.0 as usize,
            coded_height: coded.1 as usize,
            orientation,
            sample_aspect_ratio,
            color_matrix: matrix_name(parameters.color_space, &format),
            full_range: is_full_range(parameters.color_range, &format),
            pixel_format: format,
            time_base,
            start: some_ticks(stream.start_time()).map(|t| Pts::new(t, time_base)),
            duration: if still {
                None
            } else {
                some_ticks(stream.duration())
                    .filter(|&ticks| ticks > 0)
                    .map(|ticks| Pts::new(ticks, time_base))
            },
            declared_frames: u64::try_from(stream.frames()).ok().filter(|&n| n > 0),
            average_frame_rate: rate(stream.avg_frame_rate()),
            n_video_streams: self.input.streams().filter(is_video).count(),
            stream_index: self.stream_index,
            container,
            still,
        })
    }

    fn sample_aspect_ratio(&self, stream: &av::Stream<'_>) -> (u32, u32) {
        // SAFETY: context and stream belong together and are alive; the function only reads them.
        let ratio = unsafe {
            ffi::av_guess_sample_aspect_ratio(
                self.input.as_ptr().cast_mut(),
                stream.as_ptr().cast_mut(),
                ptr::null_mut(),
            )
        };
        match (u32::try_from(ratio.num), u32::try_from(ratio.den)) {
            (Ok(num @ 1..), Ok(den @ 1..)) => (num, den),
            _ => (1, 1),
        }
    }
}

/// The orientation of a video: the container's, for HEIF the picture's own, else that of the first frame.
fn of_video(path: &Path, stream: &av::Stream<'_>, cancel: &Cancel) -> Result<Orientation> {
    if let Some(turn) = of_stream(stream) {
        return Ok(turn);
    }
    if let Some(Magic::Heic | Magic::Avif) = Magic::of(path) {
        return Ok(exif::heif_orientation(path).unwrap_or_default());
    }
    // Codecs whose pictures may state their orientation, in SEI messages or EXIF.
    match stream.parameters().id() {
        av::codec::Id::H264 | av::codec::Id::HEVC | av::codec::Id::MJPEG => {
            of_first_frame(path, cancel)
        }
        _ => Ok(Orientation::default()),
    }
}

/// The orientation stated by the first frame that decodes, among the first [`FIRST_PACKETS_MAX`] packets.
fn of_first_frame(path: &Path, cancel: &Cancel) -> Result<Orientation> {
    let mut demuxer = Demuxer::open(path, cancel)?;
    let mut decoder = StreamDecoder::open(&demuxer, Threads::One)?;
    for _ in 0..FIRST_PACKETS_MAX {
        match demuxer.read()? {
            Read::Packet(packet) => drop(decoder.send(&packet)),
            Read::Damaged => {}
            Read::End => decoder.send_end(),
        }
        match decoder.receive() {
            Received::Picture(_) => return Ok(decoder.orientation().unwrap_or_default()),
            Received::End => break,
            _ => {}
        }
    }
    Ok(Orientation::default())
}

fn of_stream(stream: &av::Stream<'_>) -> Option<Orientation> {
    let kind = ffi::AVPacketSideDataType::AV_PKT_DATA_DISPLAYMATRIX;
    let mut size = 0;
    // SAFETY: the stream is alive; the bytes are copied before it can change, and only when there are 36.
    let matrix = unsafe {
        let data = ffi::av_stream_get_side_data(stream.as_ptr(), kind, &mut size);
        (!data.is_null() && size >= 36).then(|| ptr::read_unaligned(data.cast::<[i32; 9]>()))
    };
    matrix.map(Orientation::from_display_matrix)
}

/// The stored size with square pixels.
fn shown_size((width, height): (c_int, c_int), (num, den): (u32, u32)) -> Result<(usize, usize)> {
    let shown = i64::from(width) * i64::from(num) / i64::from(den);
    // Pixels so narrow that the width rounds to 0: FFmpeg keeps the stored width.
    let shown = if shown == 0 { i64::from(width) } else { shown };
    match (usize::try_from(shown), usize::try_from(height)) {
        (Ok(w @ 1..), Ok(h @ 1..)) if shown.saturating_mul(i64::from(height)) <= PIXELS_MAX => {
            Ok((w, h))
        }
        _ => Err(Error::new(
            Kind::BadInput,
            format!(
                "the picture is {width}x{height} with pixels of {num}:{den}, expected 1 to {PIXELS_MAX} pixels"
            ),
        )),
    }
}

fn some_ticks(ticks: i64) -> Option<i64> {
    (ticks != ffi::AV_NOPTS_VALUE).then_some(ticks)
}

/// The rate, or the nearest one whose numerator and denominator fit.
fn rate(ratio: av::Rational) -> Option<Rate> {
    let (Ok(near) | Err(near)) = ratio.reduce_with_limit(1_000_000);
    Rate::new(
        u32::try_from(near.numerator()).ok()?,
        u32::try_from(near.denominator()).ok()?,
    )
    .ok()
}

/// The matrix that [`Converter`] will use.
fn matrix_name(space: ffi::AVColorSpace, pixel_format: &str) -> String {
    use ffi::AVColorSpace::{
        AVCOL_SPC_BT709, AVCOL_SPC_BT2020_CL, AVCOL_SPC_BT2020_NCL, AVCOL_SPC_FCC,
        AVCOL_SPC_SMPTE240M,
    };
    let has_no_matrix = ["rgb", "bgr", "gbr", "argb", "abgr", "gray", "pal8", "mono"];
    if has_no_matrix
        .iter()
        .any(|prefix| pixel_format.starts_with(prefix))
    {
        return "none".into();
    }
    match space {
        AVCOL_SPC_BT709 => "bt709",
        AVCOL_SPC_BT2020_NCL | AVCOL_SPC_BT2020_CL => "bt2020",
        AVCOL_SPC_FCC => "fcc",
        AVCOL_SPC_SMPTE240M => "smpte240m",
        _ => "bt601",
    }
    .into()
}

/// Whether colors use the full range of their bits. Untagged gray is full range: swscale
/// assumes so for 8-bit gray, and must be told for more bits and for gray with alpha.
pub(super) fn is_full_range(range: ffi::AVColorRange, pixel_format: &str) -> bool {
    let is_gray = pixel_format.starts_with("gray") || pixel_format.starts_with("ya");
    match range {
        ffi::AVColorRange::AVCOL_RANGE_JPEG => true,
        ffi::AVColorRange::AVCOL_RANGE_MPEG => false,
        _ => is_gray || pixel_format.starts_with("yuvj"),
    }
}
