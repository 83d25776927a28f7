//! Opens a file and reads its video stream packet by packet.

use std::{collections::BTreeSet, ffi::c_int, path::Path, slice};

use ffmpeg_next::{self as av, ffi};

use super::{
    log::{failed, said},
    names::{codec_name, time_base},
    open::{encrypted, is_format, misread, no_decoder, open_input},
};
use crate::{
    cancel::Cancel,
    error::{Error, Kind, Result},
    sources::{
        magic::Magic,
        packet_headers::PacketHeaders,
        pictures::{Form, PictureFile},
        protection,
        splices::{PacketTimes, Splices},
    },
    time::TimeBase,
};

/// One file, read packet by packet from its best video stream.
pub struct Demuxer {
    pub(super) body: Body,
    pub(super) time_base: TimeBase,
    pub(super) cancel: Cancel,
    splices: Splices,
}

/// The kind of file.
pub(super) enum Body {
    /// A container that FFmpeg opened.
    Container(Container),
    /// A picture file and the index of its next frame; its packets have times but no bytes.
    Pictures { file: PictureFile, next: usize },
}

/// An open container and the index of the stream that is read.
pub(super) struct Container {
    pub(super) input: av::format::context::Input,
    pub(super) stream_index: usize,
}

/// One coded picture.
pub struct Packet(pub(super) av::Packet);

/// Result of [`Demuxer::read`].
pub enum Read {
    /// A packet of the video stream.
    Packet(Packet),
    /// Damaged bytes in the container; reading can continue after them.
    Damaged,
    /// The end of the file.
    End,
}

impl Demuxer {
    /// Opens `path` and finds its best video stream; `cancel` interrupts a blocking read.
    pub fn open(path: &Path, cancel: &Cancel) -> Result<Self> {
        let (body, time_base) = match picture_file(path)? {
            Some(file) => {
                let body = Body::Pictures { file, next: 0 };
                (body, PictureFile::time_base()?)
            }
            None => {
                let (container, time_base) = Container::open(path, cancel)?;
                (Body::Container(container), time_base)
            }
        };
        Ok(Self {
            body,
            time_base,
            cancel: cancel.clone(),
            splices: Splices::new(time_base),
        })
    }

    /// The next packet of the video stream.
    pub fn read(&mut self) -> Result<Read> {
        self.cancel.check()?;
        match &mut self.body {
            Body::Pictures { file, next } => Ok(picture_packet(file, next)),
            Body::Container(container) => {
                let read = container.read(&self.cancel)?;
                Ok(self.moved(read))
            }
        }
    }

    /// Shifts the packet's times past those of the last one, if its recording has another clock (see [`Splices`]).
    fn moved(&mut self, read: Read) -> Read {
        let Read::Packet(Packet(mut packet)) = read else {
            return read;
        };
        let offset = packet.dts().map_or(0, |dts| {
            self.splices.offset_at(&PacketTimes {
                dts,
                pts: packet.pts().unwrap_or(dts),
                duration: packet.duration(),
                key: packet.is_key(),
            })
        });
        if offset != 0 {
            packet.set_dts(packet.dts().map(|dts| dts.saturating_add(offset)));
            packet.set_pts(packet.pts().map(|pts| pts.saturating_add(offset)));
        }
        Read::Packet(Packet(packet))
    }

    /// How often times have jumped back so far, and were shifted.
    pub fn n_splices(&self) -> u64 {
        self.splices.count()
    }

    /// The reader of the stream's packet headers.
    pub fn headers(&self) -> PacketHeaders {
        match &self.body {
            Body::Container(container) => container.headers(),
            Body::Pictures { .. } => PacketHeaders::of_pictures(),
        }
    }

    /// Whether pictures are shown in another order than storage order.
    pub fn reorders(&self) -> bool {
        match &self.body {
            Body::Container(container) => container.reorders(),
            Body::Pictures { .. } => false,
        }
    }

    /// Seeks to the last key frame at or before `ticks`, by the container's index.
    pub fn seek(&mut self, ticks: i64) -> Result<()> {
        self.splices.forget_last();
        match &mut self.body {
            Body::Container(container) => container.seek(ticks),
            // Each frame of an animation builds on those before it, so decoding starts at the first.
            Body::Pictures { next, .. } => {
                *next = 0;
                Ok(())
            }
        }
    }
}

impl Container {
    fn open(path: &Path, cancel: &Cancel) -> Result<(Self, TimeBase)> {
        let input = open_input(path, cancel)?;
        let stream_index =
            best_video(&input).ok_or_else(|| Error::new(Kind::BadInput, without_video(&input)))?;
        check_readable(path, &input, stream_index)?;
        let time_base = input
            .stream(stream_index)
            .and_then(|stream| time_base(stream.time_base()));
        let time_base = time_base
            .ok_or_else(|| Error::new(Kind::BadInput, "the video stream has no time base"))?;
        let mut container = Self {
            input,
            stream_index,
        };
        container.discard_other_streams();
        Ok((container, time_base))
    }

    fn discard_other_streams(&mut self) {
        for i in 0..self.input.nb_streams() as usize {
            if i != self.stream_index
                && let Some(mut stream) = self.input.stream_mut(i)
            {
                // SAFETY: the stream belongs to `input`, which is borrowed mutably; FFmpeg only reads the field.
                unsafe { (*stream.as_mut_ptr()).discard = ffi::AVDiscard::AVDISCARD_ALL };
            }
        }
    }

    fn read(&mut self, cancel: &Cancel) -> Result<Read> {
        loop {
            cancel.check()?;
            let mut packet = av::Packet::empty();
            match packet.read(&mut self.input) {
                Ok(()) if packet.stream() == self.stream_index => {
                    check_clear(&packet)?;
                    return Ok(Read::Packet(Packet(packet)));
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

    fn headers(&self) -> PacketHeaders {
        let Ok(stream) = self.stream() else {
            return PacketHeaders::new("", &[], false);
        };
        // SAFETY: the parameters live as long as the stream; their extradata has the stated length,
        // and a descriptor is static.
        unsafe {
            let parameters = &*(*stream.as_ptr()).codecpar;
            let extradata = match usize::try_from(parameters.extradata_size) {
                Ok(size @ 1..) => slice::from_raw_parts(parameters.extradata, size),
                _ => &[],
            };
            let descriptor = ffi::avcodec_descriptor_get(parameters.codec_id).as_ref();
            let intra_only = ffi::AV_CODEC_PROP_INTRA_ONLY as c_int;
            let intra_only = descriptor.is_some_and(|codec| codec.props & intra_only != 0);
            PacketHeaders::new(&codec_name(parameters.codec_id), extradata, intra_only)
        }
    }

    fn reorders(&self) -> bool {
        // SAFETY: the parameters live as long as the stream, which is borrowed from `input`.
        let delay = |stream: av::Stream<'_>| unsafe { (*(*stream.as_ptr()).codecpar).video_delay };
        self.stream().is_ok_and(|stream| delay(stream) > 0)
    }

    fn seek(&mut self, ticks: i64) -> Result<()> {
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

    pub(super) fn stream(&self) -> Result<av::Stream<'_>> {
        self.input
            .stream(self.stream_index)
            .ok_or_else(|| Error::new(Kind::Internal, "the video stream has disappeared"))
    }
}

/// The picture file at `path`, if it is a JPEG or WebP file; `None` for anything else.
fn picture_file(path: &Path) -> Result<Option<PictureFile>> {
    let form = match Magic::of(path) {
        Some(Magic::Webp) => Form::Webp,
        // JPEG pictures one after the other without a container are a video (Motion JPEG).
        Some(Magic::Jpeg) if !is_format(path, "mjpeg") => Form::Jpeg,
        _ => return Ok(None),
    };
    PictureFile::open(path, form).map(Some)
}

/// The times of frame `next`, which is incremented.
fn picture_packet(file: &PictureFile, next: &mut usize) -> Read {
    let Some((start, duration)) = file.time_ms(*next) else {
        return Read::End;
    };
    let mut packet = av::Packet::empty();
    packet.set_pts(Some(start));
    packet.set_dts(Some(start));
    packet.set_duration(duration);
    if *next == 0 {
        packet.set_flags(av::packet::Flags::KEY);
    }
    *next += 1;
    Read::Packet(Packet(packet))
}

impl Packet {
    /// Its bytes.
    pub fn data(&self) -> &[u8] {
        self.0.data().unwrap_or_default()
    }

    /// Presentation time, if the container has one.
    pub fn pts(&self) -> Option<i64> {
        self.0.pts()
    }

    /// Ticks that it is shown for, if the container says.
    pub fn duration(&self) -> Option<i64> {
        Some(self.0.duration()).filter(|&ticks| ticks > 0)
    }

    /// Decoding time, if the container has one.
    pub fn dts(&self) -> Option<i64> {
        self.0.dts()
    }

    /// Whether it is a key frame by the container's flag.
    pub fn is_key(&self) -> bool {
        self.0.is_key()
    }

    /// Whether the container marks it as incomplete.
    pub fn is_torn(&self) -> bool {
        self.0.is_corrupt()
    }

    /// Whether it is for decoding only, because an edit list removes it from the presentation.
    pub fn is_hidden(&self) -> bool {
        use av::packet::Ref;
        // SAFETY: the packet is alive; this reads one of its fields.
        unsafe { (*self.0.as_ptr()).flags & ffi::AV_PKT_FLAG_DISCARD != 0 }
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

pub(super) fn is_video(stream: &av::Stream<'_>) -> bool {
    let picture = ffi::AV_DISPOSITION_ATTACHED_PIC | ffi::AV_DISPOSITION_TIMED_THUMBNAILS;
    // SAFETY: the stream is alive; this reads one of its fields.
    let disposition = unsafe { (*stream.as_ptr()).disposition };
    stream.parameters().medium() == av::media::Type::Video && disposition & picture == 0
}

/// Refuses a packet that the container marks as encrypted; a track may be encrypted in parts.
fn check_clear(packet: &av::Packet) -> Result<()> {
    let marks =
        |data: av::packet::SideData<'_>| data.kind() == av::packet::side_data::Type::EncryptionInfo;
    match packet.side_data().any(marks) {
        true => Err(Error::new(Kind::BadInput, encrypted("Common Encryption"))),
        false => Ok(()),
    }
}

/// Refuses a stream that is encrypted or has no decoder, before decoding any of it.
fn check_readable(
    path: &Path,
    input: &av::format::context::Input,
    stream_index: usize,
) -> Result<()> {
    let Some(stream) = input.stream(stream_index) else {
        return Ok(());
    };
    // SAFETY: the parameters live as long as the stream, which is borrowed from `input`.
    let parameters = unsafe { &*(*stream.as_ptr()).codecpar };
    let reason = encryption(path, input, &stream)
        .map(|how| encrypted(&how))
        .or_else(|| no_decoder(parameters))
        .or_else(|| misread(path, parameters));
    match reason {
        Some(reason) => Err(Error::new(Kind::BadInput, reason)),
        None => Ok(()),
    }
}

/// The stream's encryption scheme by its container; `None` for a clear stream.
fn encryption(
    path: &Path,
    input: &av::format::context::Input,
    stream: &av::Stream<'_>,
) -> Option<String> {
    let named =
        |key: &str| input.metadata().get(key).is_some() || stream.metadata().get(key).is_some();
    match input.format().name() {
        name if name.starts_with("mov") => {
            protection::scheme(path, u32::try_from(stream.id()).ok())
        }
        "mpegts" => {
            let pid = u16::try_from(stream.id()).ok()?;
            protection::is_scrambled(path, pid).then(|| "scrambled transport stream".into())
        }
        name if name.starts_with("matroska") => {
            // Without a key ID FFmpeg only logs that the encoding is unsupported.
            let is_encrypted = named("enc_key_id") || said("Unsupported encoding type");
            is_encrypted.then(|| "Matroska ContentEncryption".into())
        }
        "asf" => named("ASF_Protection_Type").then(|| "Windows Media DRM".into()),
        _ => None,
    }
}

/// Message for a file without a video, naming what it has instead.
fn without_video(input: &av::format::context::Input) -> String {
    let kinds: BTreeSet<_> = input
        .streams()
        .map(|s| format!("{:?}", s.parameters().medium()).to_lowercase())
        .collect();
    let has_cover = kinds.contains("video");
    let kinds: Vec<_> = kinds.into_iter().filter(|kind| kind != "video").collect();
    match (has_cover, kinds.is_empty()) {
        (true, _) => format!(
            "has no video: its only picture is a cover, which goes with its {}; extract it to ask about it",
            kinds.join(", ")
        ),
        (false, true) => "has no video stream, only an empty container".into(),
        (false, false) => format!("has no video stream, only {}", kinds.join(", ")),
    }
}
