//! Reads the addresses of a domain.
#![expect(
    unsafe_code,
    reason = "the wrapper of the crate `virt` reads a null pointer when an interface has no hardware address, which a \
              guest's agent may report, and never frees what libvirt returns"
)]

use std::{ffi::CStr, net::IpAddr, ptr, slice};

use virt::{domain::Domain, error::Error as VirtError, sys};

/// An interface as one of libvirt's sources reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    /// Hardware address, lower case.
    pub(crate) mac: Option<String>,
    /// Addresses in the order of the source. What is no IP address is left out.
    pub(crate) addresses: Vec<IpAddr>,
}

/// Asks one source (`VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_*`) for the addresses of `domain`.
pub(crate) fn interfaces(domain: &Domain, source: u32) -> Result<Vec<Interface>, VirtError> {
    let mut list: *mut sys::virDomainInterfacePtr = ptr::null_mut();
    // SAFETY: the domain's pointer is valid as long as `domain` lives, `list` is a valid place for the answer.
    let count = unsafe { sys::virDomainInterfaceAddresses(domain.as_ptr(), &raw mut list, source, 0) };
    let Ok(count) = usize::try_from(count) else { return Err(VirtError::last_error()) };
    if list.is_null() {
        return Ok(Vec::new());
    }
    let mut found = Vec::with_capacity(count);
    // SAFETY: libvirt returned `count` pointers in an allocation that is ours to free.
    for &interface in unsafe { slice::from_raw_parts(list, count) } {
        if interface.is_null() {
            continue;
        }
        // SAFETY: the structure is valid until `virDomainInterfaceFree` below, and nothing borrowed from it leaves.
        unsafe {
            found.push(copy(&*interface));
            sys::virDomainInterfaceFree(interface);
        }
    }
    // SAFETY: the array itself comes from malloc and is not used any more.
    unsafe { libc::free(list.cast()) };
    Ok(found)
}

/// Copies an interface out of libvirt's memory.
///
/// # Safety
///
/// The texts and the array of addresses must be valid or null.
unsafe fn copy(interface: &sys::virDomainInterface) -> Interface {
    let count = if interface.addrs.is_null() { 0 } else { interface.naddrs as usize };
    let mut addresses = Vec::with_capacity(count);
    for index in 0..count {
        // SAFETY: libvirt filled `naddrs` entries.
        let text = unsafe { text((*interface.addrs.add(index)).addr) };
        addresses.extend(text.and_then(|t| t.parse::<IpAddr>().ok()));
    }
    // SAFETY: as the caller promises.
    let mac = unsafe { text(interface.hwaddr) }.map(|m| m.to_ascii_lowercase());
    Interface { mac, addresses }
}

/// Copies a C string, or returns `None` for null.
///
/// # Safety
///
/// The pointer must be null or end with a zero byte.
unsafe fn text(pointer: *const libc::c_char) -> Option<String> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: not null, and ends with a zero byte as the caller promises.
    Some(unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
}
