//! Weights: read in place from a model directory ([`weights`]), and imported
//! once from foreign formats.
//!
//! [`architecture`] reads other people's configurations and tensor names by
//! description; [`layout`] lists what a model has; [`foreign`] is a tensor where another
//! program left it; [`msgpack`], [`pickle`] and [`torch`] find such tensors in
//! untrusted bytes, [`tensor_file`] in a file of either kind; [`writer`] writes the model directory; [`import_lwm`] and
//! [`import_hf`] join them. [`gguf`] reads the head of a GGUF file, and [`gguf_model`] makes a decoder of it.

pub mod architecture;
pub(crate) mod digest;
pub mod foreign;
pub mod gguf;
pub mod gguf_model;
pub mod import_hf;
pub mod import_lwm;
pub mod layout;
pub mod msgpack;
pub mod pickle;
pub mod tensor_file;
pub mod torch;
pub mod verify;
pub mod weights;
pub mod writer;
