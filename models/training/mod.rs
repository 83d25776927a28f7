//! What training adds to the models: gradients of what is our own.

pub mod batch_mask;

pub mod gradients;

mod operands;

mod recorded;

pub mod attention;

pub mod ring_gradients;

pub mod ring_attention;
