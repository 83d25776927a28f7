//! Synthetic videos: short clips of moving shapes, with questions and exact answers.
//!
//! A clip is a pure function of a recipe and its number: the script says what happens
//! when, and everything else (pictures, questions, files) is derived from it.

pub mod draws;

pub mod world;

pub mod draw;

pub mod questions;

pub mod recipe;

pub mod score;

pub mod clip;
