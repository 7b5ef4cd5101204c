//! stub
pub mod native;
