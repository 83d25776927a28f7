//! Training of the VQGAN (Esser et al., "Taming Transformers", arXiv 2012.09841): the layers of
//! `vision::vqgan` forward and backward, its codebook, its losses, and a discriminator.
//!
//! The network is small and its pictures are large, so that candle's graph is not used: it would add every
//! gradient to zeros on one thread. Each picture saves the inputs of its layers and has a backward pass of its
//! own. Gradients are summed in at most eight groups, chosen by the number of pictures alone, so that the number of threads does not change a
//! bit. The perceptual loss uses another trained network, whose files the user names.
//!
//! ```text
//! pixels ─► encoder ─► z ─► nearest rows ─► decoder ─► picture ─► L1, L2, LPIPS
//!              ▲       ▲         │             │          │
//!              │       └─ commitment, codebook ┘          └─► discriminator ─► hinge
//!              └────────── straight through ◄── gradient ◄────────┘
//! ```

mod parameter_ranges;

mod layers;

mod losses;

mod codebook;

pub mod options;

mod discriminator;

pub mod perceptual;

pub mod initial;

mod network;

pub mod evaluation;

pub mod state;

pub mod trainer;
