//! Providers that are executables: real programs, good ones and bad ones.

mod bad;
mod book;
mod good;
mod serving;
mod support;
