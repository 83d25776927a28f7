//! Captures FFmpeg's log for this program's error messages, instead of the terminal.

use std::{
    cell::{Cell, RefCell},
    ffi::{CStr, c_char, c_int, c_void},
    sync::{
        Once,
        atomic::{AtomicU64, Ordering},
    },
};

use ffmpeg_next::{self as av, ffi};

use crate::error::{Error, Kind};

thread_local! {
    /// FFmpeg's log messages on this thread since [`forget_messages`], at most [`MESSAGES_MAX`].
    static MESSAGES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    /// Number of damaged packets that FFmpeg's demuxer logged on this thread.
    static DAMAGED_PACKETS: Cell<u64> = const { Cell::new(0) };
}

/// Prefix of FFmpeg's log message for a damaged packet. The packet's flag
/// cannot be used: FFmpeg's parser drops it when it splits packets into frames.
const DAMAGED_PACKET: &[u8] = b"Packet corrupt";

/// How FFmpeg begins to say that it fills blocks of a picture that did not come; it is no error to it.
const CONCEALING: &[u8] = b"concealing ";

/// Messages kept per thread; the first ones are the most specific.
const MESSAGES_MAX: usize = 16;

/// Prepares FFmpeg once: its log is kept for error messages, not printed.
pub(super) fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Fills the table of error names; its result is always `Ok`.
        let _ = av::init();
        // SAFETY: both only store a value in FFmpeg's globals; the callback is a plain function.
        unsafe {
            ffi::av_log_set_level(ffi::AV_LOG_QUIET);
            #[cfg(target_arch = "x86_64")]
            ffi::av_log_set_callback(Some(keep_message));
        }
    });
}

/// How often a decoder has complained, counted from whichever of its threads it does so.
#[derive(Debug, Default)]
pub(super) struct Complaints(AtomicU64);

impl Complaints {
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// Counts a message of a decoder of ours: its contexts, of which each thread has one, all carry the
/// address of its [`Complaints`].
///
/// # Safety
/// `context` is null or points to an object that begins with a pointer to its `AVClass`.
#[cfg(target_arch = "x86_64")]
unsafe fn count_complaint(context: *mut c_void) {
    // SAFETY: by this function's contract; an object of the codecs' class is an `AVCodecContext`, whose
    // `opaque` only `StreamDecoder::open` sets, to what lives longer than the context.
    unsafe {
        if context.is_null() || *context.cast::<*const ffi::AVClass>() != ffi::avcodec_get_class() {
            return;
        }
        let complaints = (*context.cast::<ffi::AVCodecContext>()).opaque;
        if let Some(complaints) = complaints.cast::<Complaints>().as_ref() {
            complaints.0.fetch_add(1, Ordering::Release);
        }
    }
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
    // SAFETY: FFmpeg's formats are strings that end in NUL.
    let is_concealing = unsafe { CStr::from_ptr(format) }
        .to_bytes()
        .starts_with(CONCEALING);
    if level <= ffi::AV_LOG_ERROR || is_concealing {
        // SAFETY: FFmpeg hands over null or an object that begins with its class.
        unsafe { count_complaint(context) };
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
    // On a thread that is ending, thread-local storage is gone: the message is dropped.
    let _ = MESSAGES.try_with(|kept| {
        let mut kept = kept.borrow_mut();
        if kept.len() < MESSAGES_MAX {
            kept.push(text.trim().to_owned());
        }
    });
}

pub(super) fn forget_messages() {
    MESSAGES.with(|kept| kept.borrow_mut().clear());
}

/// Number of damaged packets that FFmpeg has logged on this thread; never decreases.
pub fn damaged_packets() -> u64 {
    DAMAGED_PACKETS.get()
}

/// Whether FFmpeg logged on this thread that the file is truncated.
pub fn said_truncated() -> bool {
    ["partial file", "ended prematurely", "ends prematurely"]
        .into_iter()
        .any(said)
}

/// Whether a log message of this thread contains `words`.
pub(super) fn said(words: &str) -> bool {
    MESSAGES.with(|kept| kept.borrow().iter().any(|m| m.contains(words)))
}

/// An error of `kind` with FFmpeg's first log message, or else the name of its error code.
pub(super) fn failed(kind: Kind, what: &str, error: av::Error) -> Error {
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
