//! Text out, nothing decided here: each file turns a model of this crate into the language of one program.

pub mod nft;
