//! What both ends do with bytes that the other one sent, whatever they are; and
//! frames to begin with.

pub mod exercise;
pub mod seeds;
