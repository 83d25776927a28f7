//! Writes pictures to an mp4 file.

use std::{
    ffi::c_int,
    path::{Path, PathBuf},
};

use ffmpeg_next::{self as av, ffi};
use longreel_models::file_name::FileName;

use super::{
    convert::allocated,
    log::{failed, forget_messages, prepare},
    open::create_mp4,
    scale::Scaler,
};
use crate::{
    error::{Context, Error, Kind, Result},
    flow::RgbImage,
    sources::{
        sampler::Rate,
        temporary::{persist, temporary_beside},
    },
};

/// An mp4 file being written: H.264 (MPEG-4 part 2 where FFmpeg has no libx264), 4:2:0, bt709, limited range.
///
/// It is written under a temporary name in the same directory and renamed by
/// [`VideoWriter::finish`]; if dropped before that, the temporary file is removed.
pub struct VideoWriter {
    // Fields drop in order of declaration: FFmpeg must close the file before it is removed.
    output: av::format::context::Output,
    encoder: av::encoder::video::Encoder,
    scaler: Scaler,
    rgb: av::frame::Video,
    yuv: av::frame::Video,
    file: tempfile::NamedTempFile,
    path: PathBuf,
    size: (usize, usize),
    n_written: i64,
}

impl VideoWriter {
    /// Starts `path` with frames of an even size, shown at `frame_rate`.
    pub fn create(path: &Path, width: usize, height: usize, frame_rate: Rate) -> Result<Self> {
        Self::start(path, (width, height), frame_rate).doing(|| format!("write {}", path.shown()))
    }

    fn start(path: &Path, size: (usize, usize), frame_rate: Rate) -> Result<Self> {
        prepare();
        forget_messages();
        let (width, height) = writable_size(size)?;
        let file = temporary_beside(path, ".mp4")?;
        let mut output = create_mp4(file.path()).map_err(write_failed)?;
        let encoder = open_encoder((width, height), frame_rate)?;
        let mut stream = output
            .add_stream_with(encoder.as_ref())
            .map_err(write_failed)?;
        stream.set_time_base(encoder.time_base());
        output.write_header().map_err(write_failed)?;
        let rgb = allocated(av::format::Pixel::RGB24, size)?;
        let yuv = allocated(av::format::Pixel::YUV420P, size)?;
        let formats = [
            ffi::AVPixelFormat::AV_PIX_FMT_RGB24,
            ffi::AVPixelFormat::AV_PIX_FMT_YUV420P,
        ];
        let [from, to] = formats.map(|format| (width, height, format as c_int));
        let scaler = Scaler::new(from, to, ffi::AVColorSpace::AVCOL_SPC_BT709 as c_int, false)?;
        Ok(Self {
            output,
            encoder,
            scaler,
            rgb,
            yuv,
            file,
            path: path.to_owned(),
            size,
            n_written: 0,
        })
    }

    /// Appends a frame of the size given at the start.
    pub fn write(&mut self, image: &RgbImage) -> Result<()> {
        self.encode(image)
            .doing(|| format!("write frame {} of {}", self.n_written, self.path.shown()))?;
        self.n_written += 1;
        Ok(())
    }

    fn encode(&mut self, image: &RgbImage) -> Result<()> {
        let (width, height) = self.size;
        if (image.width, image.height) != self.size || image.data.len() != width * height * 3 {
            let found = (image.width, image.height);
            return Err(Error::new(
                Kind::Internal,
                format!("the frame is {found:?}, the video {:?}", self.size),
            ));
        }
        let stride = self.rgb.stride(0);
        for (row, source) in self
            .rgb
            .data_mut(0)
            .chunks_mut(stride)
            .zip(image.data.chunks(width * 3))
        {
            row[..width * 3].copy_from_slice(source);
        }
        // The encoder may still reference the last frame; this allocates a new buffer if it does.
        // SAFETY: the frame is alive and owned by `self`.
        let code = unsafe { ffi::av_frame_make_writable(self.yuv.as_mut_ptr()) };
        if code < 0 {
            return Err(write_failed(av::Error::from(code)));
        }
        self.scaler.run(&self.rgb, &mut self.yuv)?;
        self.yuv.set_pts(Some(self.n_written));
        self.encoder.send_frame(&self.yuv).map_err(write_failed)?;
        self.write_packets()
    }

    /// Writes the packets that the encoder has finished.
    fn write_packets(&mut self) -> Result<()> {
        let stream_base = self.output.stream(0).map(|stream| stream.time_base());
        let stream_base =
            stream_base.ok_or_else(|| Error::new(Kind::Internal, "the output has no stream"))?;
        let mut packet = av::Packet::empty();
        loop {
            match self.encoder.receive_packet(&mut packet) {
                Ok(()) => {}
                Err(av::Error::Eof | av::Error::Other { errno: ffi::EAGAIN }) => return Ok(()),
                Err(error) => return Err(write_failed(error)),
            }
            packet.set_stream(0);
            packet.set_duration(1);
            packet.rescale_ts(self.encoder.time_base(), stream_base);
            packet
                .write_interleaved(&mut self.output)
                .map_err(write_failed)?;
            self.check_disk()?;
        }
    }

    /// Fails when bytes could not be written, which FFmpeg reports only in its I/O context.
    fn check_disk(&mut self) -> Result<()> {
        // SAFETY: an open output has its I/O context until it is dropped.
        let code = unsafe { (*(*self.output.as_ptr()).pb).error };
        if code >= 0 {
            Ok(())
        } else {
            Err(write_failed(av::Error::from(code)))
        }
    }

    /// Finishes the file and renames it to its path.
    pub fn finish(self) -> Result<()> {
        let path = self.path.clone();
        self.end().doing(|| format!("write {}", path.shown()))
    }

    fn end(mut self) -> Result<()> {
        if self.n_written == 0 {
            return Err(Error::new(
                Kind::Internal,
                "a video needs at least one frame",
            ));
        }
        self.encoder.send_eof().map_err(write_failed)?;
        self.write_packets()?;
        self.output.write_trailer().map_err(write_failed)?;
        // SAFETY: an open output has its I/O context until it is dropped.
        unsafe { ffi::avio_flush((*self.output.as_ptr()).pb) };
        self.check_disk()?;
        let Self {
            output,
            encoder,
            file,
            path,
            ..
        } = self;
        drop((output, encoder));
        persist(file, &path)
    }
}

fn write_failed(error: av::Error) -> Error {
    match error {
        av::Error::Other { errno: ffi::ENOSPC } => {
            Error::new(Kind::Io, "no space left on the device")
        }
        error => failed(Kind::Io, "FFmpeg cannot write the video", error),
    }
}

/// 4:2:0 halves both sides.
fn writable_size((width, height): (usize, usize)) -> Result<(c_int, c_int)> {
    let fits = |n: usize| {
        c_int::try_from(n)
            .ok()
            .filter(|n| (2..=16384).contains(n) && n % 2 == 0)
    };
    fits(width).zip(fits(height)).ok_or_else(|| {
        Error::new(
            Kind::Usage,
            format!("the frames are {width}x{height}, expected even numbers from 2 to 16384"),
        )
    })
}

fn open_encoder(
    (width, height): (c_int, c_int),
    frame_rate: Rate,
) -> Result<av::encoder::video::Encoder> {
    let codec = av::encoder::find_by_name("libx264")
        .or_else(|| av::encoder::find_by_name("mpeg4"))
        .ok_or_else(|| {
            Error::new(
                Kind::NotFound,
                "this FFmpeg has no H.264 and no MPEG-4 encoder",
            )
        })?;
    let mut encoder = av::codec::Context::new_with_codec(codec)
        .encoder()
        .video()
        .map_err(write_failed)?;
    let (num, den) = (frame_rate.num() as c_int, frame_rate.den() as c_int);
    encoder.set_width(width as u32);
    encoder.set_height(height as u32);
    encoder.set_format(av::format::Pixel::YUV420P);
    encoder.set_time_base(av::Rational::new(den, num));
    encoder.set_frame_rate(Some(av::Rational::new(num, den)));
    encoder.set_colorspace(av::color::Space::BT709);
    encoder.set_color_primaries(av::color::Primaries::BT709);
    encoder.set_color_transfer_characteristic(av::color::TransferCharacteristic::BT709);
    encoder.set_color_range(av::color::Range::MPEG);
    encoder.set_gop(24);
    // mp4 stores the codec's headers once, in the container. mpeg4 has no constant rate factor: a fixed quantizer scale.
    encoder.set_flags(av::codec::Flags::GLOBAL_HEADER | av::codec::Flags::QSCALE);
    encoder.set_global_quality(2 * ffi::FF_QP2LAMBDA as c_int);
    let mut options = av::Dictionary::new();
    options.set("crf", "18");
    options.set("preset", "medium");
    encoder
        .open_with(options)
        .map_err(|error| failed(Kind::Io, "FFmpeg cannot start the encoder", error))
}
