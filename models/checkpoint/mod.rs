//! Weights: read in place from a model directory ([`weights`]), and imported
//! once from foreign formats; [`weight_files`] says which files are a model's.
//!
//! [`layout`] lists what a model has; [`stored`] is how numbers stand in a file, [`key_map`] what tensors are called
//! elsewhere; [`foreign`] is a tensor where another program left it; [`msgpack`], [`pickle`] and [`torch`] find such
//! tensors in untrusted bytes, [`tensor_file`] in a file of either kind, [`gguf`] reads the head of a GGUF file;
//! [`writer`] writes the model directory; [`import_lwm`] joins them.

pub(crate) mod digest;
pub mod foreign;
pub mod gguf;
pub mod import_lwm;
pub mod key_map;
pub mod layout;
pub mod msgpack;
pub mod pickle;
pub mod stored;
pub mod tensor_file;
pub mod torch;
pub mod weight_files;
pub mod weights;
pub mod writer;
