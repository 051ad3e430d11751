#![doc = include_str!("../README.md")]

use cloud_providers as _;
use virt as _;
