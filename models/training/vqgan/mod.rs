//! The VQGAN as it is trained (Esser et al., "Taming Transformers", arXiv 2012.09841): the layers of
//! `vision::vqgan` there and back, its codebook, its losses, and a discriminator.
//!
//! The network is small and its pictures are large, so that nothing is recorded by candle, which would add every
//! gradient to zeros on one thread: each picture keeps the inputs of its layers and goes back through them on its
//! own. Pictures are summed in at most eight groups, by their number alone, so that the number of threads changes no
//! bit. The perceptual loss goes through another trained network, whose files the user names.
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
