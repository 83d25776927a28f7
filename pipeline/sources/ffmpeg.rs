//! FFmpeg: the only file that knows it. Demuxing, decoding, conversion to RGB,
//! and writing mp4.
//!
//! What FFmpeg does silently is made explicit here: the colour matrix and range
//! are set on the scaler, rotation and pixel shape are applied, a stop request
//! reaches into blocking reads, and its log goes to the error messages of this
//! program instead of the terminal.
#![allow(unsafe_code)]

use std::{
    cell::{Cell, RefCell},
    ffi::{CStr, c_char, c_int, c_void},
    path::{Path, PathBuf},
    ptr,
    sync::Once,
};

use ffmpeg_next::{self as av, ffi};

use super::{
    info::VideoInfo,
    orientation::Orientation,
    sampler::Rate,
    splices::Splices,
    temporary::{persist, temporary_beside},
};
use crate::{
    cancel::Cancel,
    error::{Context, Error, Kind, Result},
    flow::RgbImage,
    time::{Pts, TimeBase},
};

/// Containers and pictures that are read. Playlists, scripts and text that FFmpeg
/// would also take for a video are not here: a file never makes us open another.
const FORMATS: &str = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,nut,ivf,obu,\
    h264,hevc,m4v,mjpeg,gif,apng,rm,dv,gxf,wtv,yuv4mpegpipe,image2,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,\
    tiff_pipe,mp3,wav,flac,aac,aiff,ac3,amr";

/// Most pixels of a picture, stored or shown: 16384 × 16384.
const PIXELS_MAX: i64 = 1 << 28;

/// Most decoder threads: each may hold several pictures, and memory must stay flat.
const DECODER_THREADS_MAX: usize = 4;

/// How pictures are scaled and their chroma interpolated: what a plain `ffmpeg -i` does.
const SCALER_FLAGS: c_int = ffi::SWS_BICUBIC;

thread_local! {
    /// What FFmpeg said on this thread since [`forget_messages`], at most [`MESSAGES_MAX`].
    static MESSAGES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    /// How often the container's reader complained of a damaged packet on this thread.
    static DAMAGED_PACKETS: Cell<u64> = const { Cell::new(0) };
}

/// How FFmpeg's complaint of a damaged packet begins. The flag that goes with it
/// does not survive the parser that cuts packets into frames.
const DAMAGED_PACKET: &[u8] = b"Packet corrupt";

/// Messages kept per thread; the first ones tell most.
const MESSAGES_MAX: usize = 16;

/// Prepares FFmpeg once: its log is kept for error messages, not printed.
fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Fills the table of error names; it has no other way to fail than by that table.
        let _ = av::init();
        // SAFETY: both only store a value in FFmpeg's globals; the callback is a plain function.
        unsafe {
            ffi::av_log_set_level(ffi::AV_LOG_QUIET);
            #[cfg(target_arch = "x86_64")]
            ffi::av_log_set_callback(Some(keep_message));
        }
    });
}

/// FFmpeg's log callback; the type of `arguments` is the one x86-64 has.
#[cfg(target_arch = "x86_64")]
unsafe extern "C" fn keep_message(
    context: *mut c_void,
    level: c_int,
    format: *const c_char,
    arguments: *mut ffi::__va_list_tag,
) {
    // SAFETY: FFmpeg's formats are strings that end in NUL.
    let is_damage = unsafe { CStr::from_ptr(format) }
        .to_bytes()
        .starts_with(DAMAGED_PACKET);
    if is_damage {
        let _ = DAMAGED_PACKETS.try_with(|n| n.set(n.get() + 1));
    }
    if level > ffi::AV_LOG_ERROR {
        return;
    }
    let mut line = [0 as c_char; 256];
    let mut print_prefix = 0;
    // SAFETY: FFmpeg hands over a format with its arguments; the line has the stated length and ends in NUL.
    let text = unsafe {
        ffi::av_log_format_line2(
            context,
            level,
            format,
            arguments,
            line.as_mut_ptr(),
            256,
            &mut print_prefix,
        );
        CStr::from_ptr(line.as_ptr()).to_string_lossy()
    };
    // A thread that is ending has no store any more; its message is dropped.
    let _ = MESSAGES.try_with(|kept| {
        let mut kept = kept.borrow_mut();
        if kept.len() < MESSAGES_MAX {
            kept.push(text.trim().to_owned());
        }
    });
}

fn forget_messages() {
    MESSAGES.with(|kept| kept.borrow_mut().clear());
}

/// How often FFmpeg has complained of a damaged packet on this thread; only grows.
pub fn damaged_packets() -> u64 {
    DAMAGED_PACKETS.get()
}

/// Whether FFmpeg said on this thread that the file stops before its own end.
pub fn said_truncated() -> bool {
    let signs = ["partial file", "ended prematurely", "ends prematurely"];
    MESSAGES.with(|kept| {
        kept.borrow()
            .iter()
            .any(|m| signs.iter().any(|s| m.contains(s)))
    })
}

/// An error of `kind` with FFmpeg's own words: its first log message, or the name of its code.
fn failed(kind: Kind, what: &str, error: av::Error) -> Error {
    let said = MESSAGES.with(|kept| kept.borrow().iter().find(|m| !m.is_empty()).cloned());
    let kind = match error {
        av::Error::Exit => Kind::Interrupted,
        av::Error::Other { errno: ffi::ENOENT } => Kind::NotFound,
        av::Error::Other {
            errno: ffi::EACCES | ffi::ENOSPC | ffi::EIO | ffi::EPERM,
        } => Kind::Io,
        _ => kind,
    };
    Error::new(
        kind,
        format!(
            "{what}: {error}{}",
            said.map_or(String::new(), |s| format!(" ({s})"))
        ),
    )
}

/// One file, read packet by packet from its best video stream.
pub struct Demuxer {
    input: av::format::context::Input,
    stream_index: usize,
    time_base: TimeBase,
    cancel: Cancel,
    splices: Splices,
}

/// One coded picture.
pub struct Packet(av::Packet);

/// What reading gave.
pub enum Read {
    /// A packet of the video stream.
    Packet(Packet),
    /// Bytes that the container cannot make sense of; reading may go on behind them.
    Damaged,
    /// The end of the file.
    End,
}

impl Demuxer {
    /// Opens `path` and finds its best video stream; `cancel` breaks off a read that hangs.
    pub fn open(path: &Path, cancel: &Cancel) -> Result<Self> {
        prepare();
        forget_messages();
        let url = file_url(path)?;
        let mut options = av::Dictionary::new();
        options.set("protocol_whitelist", "file");
        options.set("format_whitelist", FORMATS);
        // A file named `a%03d.png` is that one file.
        options.set("pattern_type", "none");
        let stop = cancel.clone();
        let input = av::format::input_with_interrupt_and_dictionary(
            &url,
            move || stop.is_cancelled(),
            options,
        )
        .map_err(|error| failed(Kind::BadInput, "not a video that FFmpeg can open", error))?;
        let stream_index = best_video(&input).ok_or_else(|| {
            Error::new(
                Kind::BadInput,
                format!("has no video stream, only {}", contents(&input)),
            )
        })?;
        let time_base = input
            .stream(stream_index)
            .and_then(|stream| time_base(stream.time_base()));
        let time_base = time_base
            .ok_or_else(|| Error::new(Kind::BadInput, "the video stream has no time base"))?;
        let splices = Splices::new(time_base);
        let mut demuxer = Self {
            input,
            stream_index,
            time_base,
            cancel: cancel.clone(),
            splices,
        };
        demuxer.discard_other_streams();
        Ok(demuxer)
    }

    fn discard_other_streams(&mut self) {
        for i in 0..self.input.nb_streams() as usize {
            if i != self.stream_index
                && let Some(mut stream) = self.input.stream_mut(i)
            {
                // SAFETY: the stream belongs to `input`, which is borrowed mutably; the field is FFmpeg's to read only.
                unsafe { (*stream.as_mut_ptr()).discard = ffi::AVDiscard::AVDISCARD_ALL };
            }
        }
    }

    /// The next packet of the video stream.
    pub fn read(&mut self) -> Result<Read> {
        loop {
            self.cancel.check()?;
            let mut packet = av::Packet::empty();
            match packet.read(&mut self.input) {
                Ok(()) if packet.stream() == self.stream_index => {
                    return Ok(Read::Packet(self.moved(packet)));
                }
                Ok(()) | Err(av::Error::Other { errno: ffi::EAGAIN }) => {}
                Err(av::Error::Eof) => return Ok(Read::End),
                Err(av::Error::Exit) => {
                    return Err(Error::new(Kind::Interrupted, "stopped on request"));
                }
                Err(_) => return Ok(Read::Damaged),
            }
        }
    }

    /// The packet behind the last one, whatever its recording's clock says.
    fn moved(&mut self, mut packet: av::Packet) -> Packet {
        let offset = packet
            .dts()
            .map_or(0, |dts| self.splices.offset_at(dts, packet.duration()));
        if offset != 0 {
            packet.set_dts(packet.dts().map(|dts| dts.saturating_add(offset)));
            packet.set_pts(packet.pts().map(|pts| pts.saturating_add(offset)));
        }
        Packet(packet)
    }

    /// How often times fell back so far; they were moved on.
    pub fn n_splices(&self) -> u64 {
        self.splices.count()
    }

    /// Goes to the last point at or before `ticks` where reading can start, as the container knows it.
    pub fn seek(&mut self, ticks: i64) -> Result<()> {
        self.splices.forget_last();
        // SAFETY: `input` is open and the stream index is one of its own.
        let code = unsafe {
            ffi::av_seek_frame(
                self.input.as_mut_ptr(),
                self.stream_index as c_int,
                ticks,
                ffi::AVSEEK_FLAG_BACKWARD,
            )
        };
        if code >= 0 {
            Ok(())
        } else {
            Err(failed(Kind::BadInput, "cannot seek", av::Error::from(code)))
        }
    }

    /// What the file says of the stream.
    pub fn info(&self, path: &Path) -> Result<VideoInfo> {
        let stream = self.stream()?;
        // SAFETY: the parameters live as long as the stream, which is borrowed from `input`.
        let parameters = unsafe { &*(*stream.as_ptr()).codecpar };
        let time_base = self.time_base;
        let container = self.input.format().name().to_owned();
        let still =
            container == "image2" || container.ends_with("_pipe") && container != "yuv4mpegpipe";
        let coded = (parameters.width, parameters.height);
        let sample_aspect_ratio = self.sample_aspect_ratio(&stream);
        let orientation = orientation(&stream);
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
                self.duration(&stream, time_base)
            },
            declared_frames: u64::try_from(stream.frames()).ok().filter(|&n| n > 0),
            average_frame_rate: rate(stream.avg_frame_rate()),
            n_video_streams: self.input.streams().filter(is_video).count(),
            stream_index: self.stream_index,
            container,
            still,
        })
    }

    fn stream(&self) -> Result<av::Stream<'_>> {
        self.input
            .stream(self.stream_index)
            .ok_or_else(|| Error::new(Kind::Internal, "the video stream is gone"))
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

    fn duration(&self, stream: &av::Stream<'_>, stream_base: TimeBase) -> Option<Pts> {
        let of_stream = some_ticks(stream.duration())
            .filter(|&t| t > 0)
            .map(|t| Pts::new(t, stream_base));
        // SAFETY: the context is alive; this reads one of its fields.
        let method = unsafe { (*self.input.as_ptr()).duration_estimation_method };
        if of_stream.is_some()
            || method == ffi::AVDurationEstimationMethod::AVFMT_DURATION_FROM_BITRATE
        {
            return of_stream;
        }
        let ticks = some_ticks(self.input.duration()).filter(|&t| t > 0)?;
        Some(Pts::new(ticks, TimeBase::new(1, ffi::AV_TIME_BASE as u32)?))
    }
}

impl Packet {
    /// Presentation time, if the container has one.
    pub fn pts(&self) -> Option<i64> {
        self.0.pts()
    }

    /// Decoding time, if the container has one.
    pub fn dts(&self) -> Option<i64> {
        self.0.dts()
    }

    /// Whether decoding can start here, as the container says.
    pub fn is_key(&self) -> bool {
        self.0.is_key()
    }

    /// Whether the container found it incomplete.
    pub fn is_torn(&self) -> bool {
        self.0.is_corrupt()
    }

    /// Whether it is needed for decoding only: an edit list has cut it away.
    pub fn is_hidden(&self) -> bool {
        use av::packet::Ref;
        // SAFETY: the packet is alive; this reads one of its fields.
        unsafe { (*self.0.as_ptr()).flags & ffi::AV_PKT_FLAG_DISCARD != 0 }
    }
}

/// `file:PATH`, so that no name is taken for a protocol.
fn file_url(path: &Path) -> Result<PathBuf> {
    match path.to_str() {
        Some(text) if !text.contains('\0') => Ok(PathBuf::from(format!("file:{text}"))),
        _ => Err(Error::new(
            Kind::BadInput,
            "the file's name is not UTF-8 text, which FFmpeg needs",
        )),
    }
}

/// FFmpeg's best video stream, or the first real one when the best is a cover picture.
fn best_video(input: &av::format::context::Input) -> Option<usize> {
    let best = input
        .streams()
        .best(av::media::Type::Video)
        .filter(is_video);
    best.or_else(|| input.streams().find(is_video))
        .map(|stream| stream.index())
}

fn is_video(stream: &av::Stream<'_>) -> bool {
    let picture = ffi::AV_DISPOSITION_ATTACHED_PIC | ffi::AV_DISPOSITION_TIMED_THUMBNAILS;
    // SAFETY: the stream is alive; this reads one of its fields.
    let disposition = unsafe { (*stream.as_ptr()).disposition };
    stream.parameters().medium() == av::media::Type::Video && disposition & picture == 0
}

/// The kinds of stream a file has, for an error message.
fn contents(input: &av::format::context::Input) -> String {
    let kinds: std::collections::BTreeSet<_> = input
        .streams()
        .map(|s| format!("{:?}", s.parameters().medium()).to_lowercase())
        .collect();
    if kinds.is_empty() {
        "an empty container".into()
    } else {
        kinds.into_iter().collect::<Vec<_>>().join(", ")
    }
}

fn orientation(stream: &av::Stream<'_>) -> Orientation {
    let kind = ffi::AVPacketSideDataType::AV_PKT_DATA_DISPLAYMATRIX;
    let mut size = 0;
    // SAFETY: the stream is alive; the bytes are copied before it can change, and only when there are 36.
    let matrix = unsafe {
        let data = ffi::av_stream_get_side_data(stream.as_ptr(), kind, &mut size);
        if data.is_null() || size < 36 {
            None
        } else {
            Some(ptr::read_unaligned(data.cast::<[i32; 9]>()))
        }
    };
    matrix.map_or(Orientation::default(), Orientation::from_display_matrix)
}

/// The stored size with square pixels.
fn shown_size((width, height): (c_int, c_int), (num, den): (u32, u32)) -> Result<(usize, usize)> {
    let shown = i64::from(width) * i64::from(num) / i64::from(den);
    // A pixel so thin that nothing is left: FFmpeg keeps the stored width.
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

fn time_base(ratio: av::Rational) -> Option<TimeBase> {
    TimeBase::new(
        u32::try_from(ratio.numerator()).ok()?,
        u32::try_from(ratio.denominator()).ok()?,
    )
}

/// The rate, or the nearest one whose parts are small enough.
fn rate(ratio: av::Rational) -> Option<Rate> {
    let (Ok(near) | Err(near)) = ratio.reduce_with_limit(1_000_000);
    Rate::new(
        u32::try_from(near.numerator()).ok()?,
        u32::try_from(near.denominator()).ok()?,
    )
    .ok()
}

fn codec_name(id: ffi::AVCodecID) -> String {
    // SAFETY: returns a static string for every id.
    unsafe { static_text(ffi::avcodec_get_name(id)) }
}

fn pixel_format_name(format: c_int) -> String {
    // SAFETY: takes any descriptor, an unknown one gives null; the pointer is to a static structure.
    unsafe {
        let mut iterator = ptr::null();
        loop {
            iterator = ffi::av_pix_fmt_desc_next(iterator);
            if iterator.is_null() {
                return "unknown".into();
            }
            if ffi::av_pix_fmt_desc_get_id(iterator) as c_int == format {
                return static_text((*iterator).name);
            }
        }
    }
}

/// # Safety
/// `text` is null or a NUL-terminated string that lives for ever.
unsafe fn static_text(text: *const c_char) -> String {
    if text.is_null() {
        return "unknown".into();
    }
    // SAFETY: by this function's contract.
    unsafe { CStr::from_ptr(text).to_string_lossy().into_owned() }
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

fn is_full_range(range: ffi::AVColorRange, pixel_format: &str) -> bool {
    range == ffi::AVColorRange::AVCOL_RANGE_JPEG || pixel_format.starts_with("yuvj")
}

/// The decoder of one stream, and the picture it gave last.
pub struct Decoder {
    decoder: av::decoder::Video,
    picture: av::frame::Video,
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

/// Turns decoded pictures into upright RGB of one size.
pub struct Converter {
    orientation: Orientation,
    /// Size before the turn.
    size: (usize, usize),
    scaler: Option<(Look, Scaler)>,
    rgb: av::frame::Video,
}

/// What of a picture decides how it is converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    width: c_int,
    height: c_int,
    format: c_int,
    /// Index of the matrix in swscale's table.
    matrix: c_int,
    full_range: bool,
}

impl Converter {
    /// A converter to the size and orientation of `info`.
    ///
    /// A stream that changes its size midway is scaled to the size it began with.
    pub fn new(info: &VideoInfo) -> Result<Self> {
        let size = info.orientation.size((info.width, info.height));
        let rgb = allocated(av::format::Pixel::RGB24, size)?;
        Ok(Self {
            orientation: info.orientation,
            size,
            scaler: None,
            rgb,
        })
    }

    /// The picture that `decoder` gave last.
    pub fn convert(&mut self, decoder: &Decoder) -> Result<RgbImage> {
        let picture = &decoder.picture;
        let look = look(picture);
        if self.scaler.as_ref().is_none_or(|(known, _)| *known != look) {
            self.scaler = Some((look, Scaler::to_rgb(look, self.size)?));
        }
        if let Some((_, scaler)) = &mut self.scaler {
            scaler.run(picture, &mut self.rgb)?;
        }
        Ok(self.orientation.apply(packed(&self.rgb, self.size)))
    }
}

/// A frame with memory of its own.
fn allocated(
    format: av::format::Pixel,
    (width, height): (usize, usize),
) -> Result<av::frame::Video> {
    let frame = av::frame::Video::new(format, width as u32, height as u32);
    // SAFETY: the frame is alive; this asks whether it has memory.
    if unsafe { frame.is_empty() } {
        return Err(Error::new(
            Kind::TooLarge,
            format!("no memory for a picture of {width}x{height}"),
        ));
    }
    Ok(frame)
}

fn look(picture: &av::frame::Video) -> Look {
    // SAFETY: the frame is alive; this reads its plain fields.
    let frame = unsafe { &*picture.as_ptr() };
    Look {
        width: frame.width,
        height: frame.height,
        format: frame.format,
        matrix: frame.colorspace as c_int,
        full_range: is_full_range(frame.color_range, &pixel_format_name(frame.format)),
    }
}

/// The rows of an RGB frame without their padding.
fn packed(frame: &av::frame::Video, (width, height): (usize, usize)) -> RgbImage {
    let mut data = Vec::with_capacity(width * height * 3);
    for row in frame.data(0).chunks(frame.stride(0)).take(height) {
        data.extend_from_slice(&row[..width * 3]);
    }
    RgbImage {
        width,
        height,
        data,
    }
}

/// swscale, set up for one look.
struct Scaler(ptr::NonNull<ffi::SwsContext>);

// SAFETY: the context has no tie to the thread that made it, and is never shared.
unsafe impl Send for Scaler {}

impl Scaler {
    /// From `look` to RGB24 of `size`, with the look's matrix and range.
    fn to_rgb(look: Look, size: (usize, usize)) -> Result<Self> {
        let rgb = ffi::AVPixelFormat::AV_PIX_FMT_RGB24 as c_int;
        let from = (look.width, look.height, look.format);
        Self::new(
            from,
            (size.0 as c_int, size.1 as c_int, rgb),
            look.matrix,
            look.full_range,
        )
    }

    /// From one width, height and pixel format to another. `matrix` and `full_range` are of the side that is YUV.
    fn new(
        from: (c_int, c_int, c_int),
        to: (c_int, c_int, c_int),
        matrix: c_int,
        full_range: bool,
    ) -> Result<Self> {
        // SAFETY: allocates or gives null.
        let context = ptr::NonNull::new(unsafe { ffi::sws_alloc_context() })
            .ok_or_else(|| Error::new(Kind::TooLarge, "no memory for a scaler"))?;
        let mut scaler = Self(context);
        let options: [(&CStr, i64); 7] = [
            (c"srcw", from.0.into()),
            (c"srch", from.1.into()),
            (c"src_format", from.2.into()),
            (c"dstw", to.0.into()),
            (c"dsth", to.1.into()),
            (c"dst_format", to.2.into()),
            (c"sws_flags", SCALER_FLAGS.into()),
        ];
        for (name, value) in options {
            scaler.set(name, value)?;
        }
        // 4:2:0 has its chroma between two rows: FFmpeg's scale filter says so to the scaler, and so must we.
        let yuv420 = ffi::AVPixelFormat::AV_PIX_FMT_YUV420P as c_int;
        if from.2 == yuv420 {
            scaler.set(c"src_v_chr_pos", 128)?;
        }
        if to.2 == yuv420 {
            scaler.set(c"dst_v_chr_pos", 128)?;
        }
        scaler.init()?;
        scaler.set_colors(matrix, full_range);
        Ok(scaler)
    }

    fn set(&mut self, name: &CStr, value: i64) -> Result<()> {
        // SAFETY: the context is alive and the name ends in NUL.
        let code = unsafe { ffi::av_opt_set_int(self.0.as_ptr().cast(), name.as_ptr(), value, 0) };
        if code >= 0 {
            return Ok(());
        }
        Err(failed(
            Kind::BadInput,
            &format!("scaler option {}", name.to_string_lossy()),
            av::Error::from(code),
        ))
    }

    fn set_colors(&mut self, matrix: c_int, full_range: bool) {
        let unity = 1 << 16;
        let range = c_int::from(full_range);
        // SAFETY: the context is alive; the table is static. A picture without a matrix (RGB, gray) is refused
        // with a negative code, and needs none.
        unsafe {
            let table = ffi::sws_getCoefficients(matrix);
            ffi::sws_setColorspaceDetails(
                self.0.as_ptr(),
                table,
                range,
                table,
                range,
                0,
                unity,
                unity,
            );
        }
    }

    fn init(&mut self) -> Result<()> {
        // SAFETY: the context is alive and its options are set.
        let code =
            unsafe { ffi::sws_init_context(self.0.as_ptr(), ptr::null_mut(), ptr::null_mut()) };
        if code >= 0 {
            Ok(())
        } else {
            Err(failed(
                Kind::BadInput,
                "the picture cannot be converted",
                av::Error::from(code),
            ))
        }
    }

    /// Scales the whole of `from` into `to`.
    fn run(&mut self, from: &av::frame::Video, to: &mut av::frame::Video) -> Result<()> {
        // SAFETY: both frames are alive and have the sizes and formats the context was made for
        // (`Converter` compares the look of every picture, and owns the output).
        let rows = unsafe {
            let (source, target) = (from.as_ptr(), to.as_mut_ptr());
            ffi::sws_scale(
                self.0.as_ptr(),
                (*source).data.as_ptr().cast(),
                (*source).linesize.as_ptr(),
                0,
                (*source).height,
                (*target).data.as_ptr(),
                (*target).linesize.as_ptr(),
            )
        };
        if rows >= 0 {
            Ok(())
        } else {
            Err(failed(
                Kind::BadInput,
                "the picture cannot be converted",
                av::Error::from(rows),
            ))
        }
    }
}

impl Drop for Scaler {
    fn drop(&mut self) {
        // SAFETY: the context is ours and not used again.
        unsafe { ffi::sws_freeContext(self.0.as_ptr()) };
    }
}

/// An mp4 file in the making: H.264 (MPEG-4 part 2 where FFmpeg has no libx264), 4:2:0, bt709, limited range.
///
/// It is written under a temporary name beside its place and renamed into it by
/// [`VideoWriter::finish`]; dropped before that, it leaves nothing behind.
pub struct VideoWriter {
    // Declared first, dropped first: FFmpeg closes the file before it is removed.
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
        Self::start(path, (width, height), frame_rate).doing(|| format!("write {}", path.display()))
    }

    fn start(path: &Path, size: (usize, usize), frame_rate: Rate) -> Result<Self> {
        prepare();
        forget_messages();
        let (width, height) = writable_size(size)?;
        let file = temporary_beside(path, ".mp4")?;
        let mut output =
            av::format::output_as(&file_url(file.path())?, "mp4").map_err(write_failed)?;
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
            .doing(|| format!("write frame {} of {}", self.n_written, self.path.display()))?;
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
        // The encoder may still hold the last frame: this takes a new buffer when it does.
        // SAFETY: the frame is alive and ours.
        let code = unsafe { ffi::av_frame_make_writable(self.yuv.as_mut_ptr()) };
        if code < 0 {
            return Err(write_failed(av::Error::from(code)));
        }
        self.scaler.run(&self.rgb, &mut self.yuv)?;
        self.yuv.set_pts(Some(self.n_written));
        self.encoder.send_frame(&self.yuv).map_err(write_failed)?;
        self.write_packets()
    }

    /// Writes what the encoder has ready.
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

    /// Fails when bytes could not be written, which FFmpeg tells only here.
    fn check_disk(&mut self) -> Result<()> {
        // SAFETY: an open output has its I/O context until it is dropped.
        let code = unsafe { (*(*self.output.as_ptr()).pb).error };
        if code >= 0 {
            Ok(())
        } else {
            Err(write_failed(av::Error::from(code)))
        }
    }

    /// Ends the file and puts it in its place.
    pub fn finish(self) -> Result<()> {
        let path = self.path.clone();
        self.end().doing(|| format!("write {}", path.display()))
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
    // mp4 keeps the codec's headers once, in front. For mpeg4, which knows no constant rate factor: a fixed scale.
    encoder.set_flags(av::codec::Flags::GLOBAL_HEADER | av::codec::Flags::QSCALE);
    encoder.set_global_quality(2 * ffi::FF_QP2LAMBDA as c_int);
    let mut options = av::Dictionary::new();
    options.set("crf", "18");
    options.set("preset", "medium");
    encoder
        .open_with(options)
        .map_err(|error| failed(Kind::Io, "FFmpeg cannot start the encoder", error))
}
