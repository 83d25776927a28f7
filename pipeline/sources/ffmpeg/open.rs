//! Opens files, and explains why one does not open.

use std::{
    ffi::{CStr, CString, c_int},
    fs::File,
    io::Read,
    os::unix::ffi::OsStrExt,
    path::Path,
    ptr,
};

use ffmpeg_next::{self as av, ffi, util::interrupt};

use super::{
    log::{failed, forget_messages, prepare, said},
    names::{codec_name, static_text},
};
use crate::{
    cancel::Cancel,
    error::{Error, Kind, Result},
    sources::{boxes::BoxFile, magic::Magic, pictures::exif::misread_tiff, protection},
};

/// Containers and picture formats that are read. Playlists, scripts and text formats that FFmpeg
/// also reads as video are left out for security: opening one file must not make FFmpeg open another.
const FORMATS: &str = "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,nut,ivf,obu,\
    h264,hevc,m4v,mjpeg,gif,apng,rm,dv,gxf,wtv,yuv4mpegpipe,image2,png_pipe,jpeg_pipe,webp_pipe,bmp_pipe,\
    tiff_pipe,ppm_pipe,pgm_pipe,pbm_pipe,pam_pipe,qoi_pipe,j2k_pipe,mp3,wav,flac,aac,aiff,ac3,amr";

/// Formats that are lists of other files or addresses.
const LISTS: [&str; 7] = [
    "hls",
    "dash",
    "concat",
    "sdp",
    "rtsp",
    "imf",
    "webm_dash_manifest",
];

/// Bytes of a file from which its format is guessed: FFmpeg's own maximum.
const PROBE_BYTES: usize = 1 << 20;

/// Opens `path` and detects its streams; `cancel` interrupts a blocking read.
pub(super) fn open_input(path: &Path, cancel: &Cancel) -> Result<av::format::context::Input> {
    prepare();
    forget_messages();
    let url = file_url(path)?;
    let mut options = av::Dictionary::new();
    options.set("protocol_whitelist", "file");
    options.set("format_whitelist", FORMATS);
    // Without this FFmpeg would take the name `a%03d.png` for a sequence of files.
    options.set("pattern_type", "none");
    open_url(&url, options, cancel).map_err(|error| unreadable(path, error))
}

/// As `ffmpeg_next::format::input_with_interrupt_and_dictionary`, which takes UTF-8 names only.
fn open_url(
    url: &CStr,
    options: av::Dictionary<'_>,
    cancel: &Cancel,
) -> std::result::Result<av::format::context::Input, av::Error> {
    let stop = cancel.clone();
    let interrupt = interrupt::new(Box::new(move || stop.is_cancelled()));
    // SAFETY: the context is made here, and freed by FFmpeg where it does not open; the guard, which
    // lives as long as the input, owns what the callback looks at; FFmpeg takes the options it knows
    // and gives back the others, which are freed.
    unsafe {
        let mut context = ffi::avformat_alloc_context();
        if context.is_null() {
            return Err(av::Error::Other { errno: ffi::ENOMEM });
        }
        (*context).interrupt_callback = interrupt.interrupt;
        let mut options = options.disown();
        let code = ffi::avformat_open_input(
            &raw mut context,
            url.as_ptr(),
            ptr::null(),
            &raw mut options,
        );
        drop(av::Dictionary::own(options));
        checked(code)?;
        let input = av::format::context::Input::wrap_with_interrupt(context, interrupt.guard);
        checked(ffi::avformat_find_stream_info(context, ptr::null_mut()))?;
        Ok(input)
    }
}

fn checked(code: c_int) -> std::result::Result<(), av::Error> {
    match code {
        0.. => Ok(()),
        _ => Err(av::Error::from(code)),
    }
}

/// Creates an mp4 file at `path`.
pub(super) fn create_mp4(
    path: &Path,
) -> std::result::Result<av::format::context::Output, av::Error> {
    let url = file_url(path).map_err(|_| av::Error::InvalidData)?;
    // SAFETY: the context is made here and freed by its wrapper, or here where the file does not open.
    unsafe {
        let mut context = ptr::null_mut();
        checked(ffi::avformat_alloc_output_context2(
            &raw mut context,
            ptr::null(),
            c"mp4".as_ptr(),
            url.as_ptr(),
        ))?;
        let opened = ffi::avio_open(&raw mut (*context).pb, url.as_ptr(), ffi::AVIO_FLAG_WRITE);
        if let Err(error) = checked(opened) {
            ffi::avformat_free_context(context);
            return Err(error);
        }
        Ok(av::format::context::Output::wrap(context))
    }
}

/// `file:PATH`, so that no name is taken for a protocol. FFmpeg passes the bytes of a name to the system unchanged.
fn file_url(path: &Path) -> Result<CString> {
    let url = [b"file:", path.as_os_str().as_bytes()].concat();
    let message = "the file name contains a NUL byte";
    CString::new(url).map_err(|_| Error::new(Kind::BadInput, message))
}

/// The reason why `path` does not open: a known one, else FFmpeg's message.
fn unreadable(path: &Path, error: av::Error) -> Error {
    if error == av::Error::Exit {
        return failed(Kind::Interrupted, "not opened", error);
    }
    let reason = refused_format(path)
        .or_else(|| protection::scheme(path, None).map(|scheme| encrypted(&scheme)))
        .or_else(|| Magic::of(path)?.beyond(&version()))
        .or_else(|| (said("moov atom not found") && has_boxes(path)).then(no_index));
    match reason {
        Some(reason) => Error::new(Kind::BadInput, reason),
        None => failed(Kind::BadInput, "not a video that FFmpeg can open", error),
    }
}

/// Whether the file begins with an mp4 box: FFmpeg also takes any file named `.mp4` for one.
fn has_boxes(path: &Path) -> bool {
    let first = BoxFile::open(path).and_then(|mut file| file.children(file.whole()?));
    let known: [&[u8; 4]; 7] = [
        b"ftyp", b"mdat", b"free", b"skip", b"wide", b"styp", b"moof",
    ];
    first.is_ok_and(|boxes| boxes.first().is_some_and(|b| known.contains(&&b.kind)))
}

fn no_index() -> String {
    "moov atom not found: the index of an mp4 is missing, as in a recording that was cut off or is still being \
     written"
        .into()
}

/// Message for a video whose pictures are encrypted.
pub(super) fn encrypted(how: &str) -> String {
    format!(
        "the video is encrypted ({how}), expected one without encryption: decrypt it with its key first"
    )
}

/// Message for a file of a format that FFmpeg reads and this program refuses.
fn refused_format(path: &Path) -> Option<String> {
    if !said("Format not on whitelist") {
        return None;
    }
    let (name, words) = guessed_format(path)?;
    let is_list = name.split(',').any(|name| LISTS.contains(&name));
    let is_picture = name.ends_with("_pipe") || name == "ico";
    let to = if is_picture { "out.png" } else { "out.mp4" };
    Some(match is_list {
        true => format!(
            "not a video that FFmpeg can open here: it is a list of other files or addresses ({words}), which would \
             be opened; name the video itself"
        ),
        false => format!(
            "not a video that FFmpeg can open here: its format is {name} ({words}), which is not among those that \
             are read; convert it first, e.g. ffmpeg -i FILE {to}"
        ),
    })
}

/// FFmpeg's short and long name of the format of `path`, guessed from its first bytes and its file name.
fn guessed_format(path: &Path) -> Option<(String, String)> {
    let mut bytes = Vec::new();
    let file = File::open(path).ok()?;
    file.take(PROBE_BYTES as u64).read_to_end(&mut bytes).ok()?;
    let n = c_int::try_from(bytes.len()).ok()?;
    bytes.resize(bytes.len() + ffi::AVPROBE_PADDING_SIZE as usize, 0);
    let url = file_url(path).ok()?;
    let data = ffi::AVProbeData {
        filename: url.as_ptr(),
        buf: bytes.as_mut_ptr(),
        buf_size: n,
        mime_type: ptr::null(),
    };
    // SAFETY: name and bytes live until the end of this function, and the bytes have FFmpeg's padding;
    // formats are static.
    unsafe {
        let format = ffi::av_probe_input_format(&raw const data, 1);
        (!format.is_null()).then(|| {
            (
                static_text((*format).name),
                static_text((*format).long_name),
            )
        })
    }
}

/// Whether FFmpeg takes `path` for a file of this format.
pub(super) fn is_format(path: &Path, format: &str) -> bool {
    guessed_format(path).is_some_and(|(name, _)| name == format)
}

/// Message for a picture that FFmpeg decodes to wrong colors without an error.
pub(super) fn misread(path: &Path, parameters: &ffi::AVCodecParameters) -> Option<String> {
    if parameters.codec_id != ffi::AVCodecID::AV_CODEC_ID_TIFF {
        return None;
    }
    let what = misread_tiff(&std::fs::read(path).ok()?)?;
    Some(format!(
        "{what}, which FFmpeg {} decodes to wrong colors, expected another compression: save it as PNG or JPEG",
        version()
    ))
}

/// The version of FFmpeg at run time, e.g. `5.1.9-0+deb12u1`.
pub(super) fn version() -> String {
    // SAFETY: a static string.
    unsafe { static_text(ffi::av_version_info()) }
}

/// Message for a codec without a decoder in this FFmpeg; `None` if it has one.
pub(super) fn no_decoder(parameters: &ffi::AVCodecParameters) -> Option<String> {
    // SAFETY: takes any id, and gives null or a static structure.
    let decoder = unsafe { ffi::avcodec_find_decoder(parameters.codec_id) };
    if !decoder.is_null() {
        return None;
    }
    // SAFETY: gives a number.
    let library = unsafe { ffi::avcodec_version() };
    let (major, minor, micro) = (library >> 16, library >> 8 & 0xff, library & 0xff);
    let codec = match parameters.codec_id {
        ffi::AVCodecID::AV_CODEC_ID_NONE => unknown_codec(parameters.codec_tag.to_le_bytes()),
        id => codec_name(id),
    };
    Some(format!(
        "this FFmpeg {} (libavcodec {major}.{minor}.{micro}) has no decoder for {codec}",
        version()
    ))
}

/// Description of a codec without a name in FFmpeg, by its tag in the container.
fn unknown_codec(tag: [u8; 4]) -> String {
    match &tag {
        b"vvc1" | b"vvi1" => "vvc".into(),
        b"evc1" => "evc".into(),
        [0, 0, 0, 0] => "a codec that it does not know".into(),
        _ => format!("an unknown codec (`{}`)", tag.escape_ascii()),
    }
}
