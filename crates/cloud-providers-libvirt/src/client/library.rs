//! Loads libvirt's library when it is first needed, and not with the program.
//!
//! The library brings some fifty others along, which would be mapped and initialised at every start of every program
//! with this provider, whatever the program is asked to do; and a host without it could start none of them.
//!
//! The crates `virt` and `virt-sys` call libvirt's functions by their names. Those that this provider needs are defined
//! here under the same names and call on into the library. A linker that drops what nobody refers to (lld, which is
//! rustc's own on x86-64) then leaves the library out of what the program needs to be started. With others, or where
//! somebody uses further functions of `virt`, the library is linked as ever; it is the same one, and found loaded.
#![expect(
    unsafe_code,
    reason = "functions of a library that is loaded late are called through pointers, and take the place of those that \
              `virt-sys` declares; neither can be said in safe Rust"
)]

use std::{
    ffi::{c_char, c_int, c_uchar, c_uint, c_ulonglong, c_void},
    sync::OnceLock,
};

use cloud_providers::{Error, Result};
use libloading::os::unix as loader;
use virt::sys::{
    self, virConnectPtr, virDomainInterfacePtr, virDomainPtr, virErrorFunc, virErrorPtr, virNetworkPtr,
    virStoragePoolPtr, virStorageVolPtr, virStreamPtr,
};

/// The name under which every libvirt has installed its library since 2005.
const NAME: &str = "libvirt.so.0";

/// What the program says of itself to whoever packs it: which library it loads, and that it starts without. The note is
/// that of <https://systemd.io/ELF_DLOPEN_METADATA/>.
const LOADS: &[u8] = b"[{\"soname\":[\"libvirt.so.0\"],\"feature\":\"libvirt\",\
    \"description\":\"Virtual machines of libvirt\",\"priority\":\"recommended\"}]\0";

/// A note of an ELF file.
#[repr(C, align(4))]
struct Note<const LENGTH: usize> {
    owner_length: u32,
    text_length: u32,
    kind: u32,
    owner: [u8; 4],
    text: [u8; LENGTH],
}

#[used]
#[unsafe(link_section = ".note.dlopen")]
static NOTE: Note<{ LOADS.len() }> = Note {
    owner_length: 4,
    text_length: LOADS.len() as u32,
    kind: 0x407c_0c0a,
    owner: *b"FDO\0",
    text: *LOADS.first_chunk().expect("the text has its own length"),
};

/// libvirt's library with the functions that are used of it. It stays loaded until the process ends.
pub(super) struct Library {
    functions: Functions,
    /// What the functions live in.
    _handle: loader::Library,
}

/// Loads the library once for the whole process. The provider does it before its first call to libvirt.
///
/// # Errors
///
/// When there is none, or one that lacks a function; every later call returns the same error.
pub(super) fn load() -> Result<&'static Library> {
    static LIBRARY: OnceLock<Result<Library>> = OnceLock::new();
    LIBRARY.get_or_init(|| Library::open(NAME)).as_ref().map_err(Error::clone)
}

impl Library {
    fn open(name: &str) -> Result<Self> {
        // All that it refers to is looked for now: a library that is half there must not end the program later. Nobody
        // else's names are resolved by it.
        let flags = loader::RTLD_NOW | loader::RTLD_LOCAL;
        // SAFETY: what the library runs when it is loaded is what it runs when it is linked to a program.
        let handle = unsafe { loader::Library::open(Some(name), flags) }
            .map_err(|e| crate::error::no_library(name, "cannot load the library of libvirt", e))?;
        // SAFETY: the signatures are those of `virt-sys`, and the compiler has compared them.
        let functions = unsafe { Functions::find(&handle) }
            .map_err(|e| crate::error::no_library(name, "the library of libvirt is too old", e))?;
        Ok(Self { functions, _handle: handle })
    }
}

/// The functions, for a call that `virt` makes.
///
/// Aborts when there is no library: most functions could say nothing of that to `virt`. The provider never gets here
/// without one, since it loads it first.
fn functions() -> &'static Functions {
    match load() {
        Ok(library) => &library.functions,
        // The caller is a C function as far as Rust knows, out of which no panic goes: the process aborts with this.
        Err(error) => panic!("{}", error.report()),
    }
}

/// Makes of declarations a table of pointers, and a function for each that `virt` finds in the place of libvirt's.
macro_rules! functions {
    ($(fn $name:ident($($argument:ident: $of:ty),*) $(-> $returned:ty)?;)*) => {
        #[expect(non_snake_case, reason = "the names are libvirt's")]
        struct Functions {
            $($name: unsafe extern "C" fn($($of),*) $(-> $returned)?,)*
        }

        impl Functions {
            /// Finds all of them.
            ///
            /// # Safety
            ///
            /// The handle must be that of libvirt's library, and be kept as long as a function is called.
            unsafe fn find(handle: &loader::Library) -> std::result::Result<Self, libloading::Error> {
                // The handle alone is searched, so that nothing here is ever found in the place of the library's own.
                // SAFETY: each has the type that is checked below.
                unsafe {
                    Ok(Self { $($name: *handle.get(concat!(stringify!($name), "\0"))?,)* })
                }
            }
        }

        $(
            // Does not compile when `virt-sys` declares another signature.
            const _: unsafe extern "C" fn($($of),*) $(-> $returned)? = sys::$name;

            // Otherwise the program would offer it to libraries as well, since libvirt's has the name too, and those
            // of libvirt's calls to itself that go by names would end up here.
            std::arch::global_asm!(concat!(".hidden ", stringify!($name)));

            /// Calls libvirt's function of the same name.
            ///
            /// # Safety
            ///
            /// As libvirt's documentation says of it.
            #[unsafe(no_mangle)]
            unsafe extern "C" fn $name($($argument: $of),*) $(-> $returned)? {
                // SAFETY: the caller keeps to the rules of libvirt's own function, which this is.
                unsafe { (functions().$name)($($argument),*) }
            }
        )*
    };
}

// A function that is called and is not here is found all the same: the library is linked to the program again, which
// `tests/lazy.rs` notices.
functions! {
    fn virConnectClose(connection: virConnectPtr) -> c_int;
    fn virConnectGetCapabilities(connection: virConnectPtr) -> *mut c_char;
    fn virConnectGetDomainCapabilities(
        connection: virConnectPtr,
        emulator: *const c_char,
        arch: *const c_char,
        machine: *const c_char,
        kind: *const c_char,
        flags: c_uint
    ) -> *mut c_char;
    fn virConnectGetType(connection: virConnectPtr) -> *const c_char;
    fn virConnectIsAlive(connection: virConnectPtr) -> c_int;
    fn virConnectListAllDomains(
        connection: virConnectPtr,
        domains: *mut *mut virDomainPtr,
        flags: c_uint
    ) -> c_int;
    fn virConnectOpen(uri: *const c_char) -> virConnectPtr;
    fn virConnectRef(connection: virConnectPtr) -> c_int;
    fn virConnectSetKeepAlive(connection: virConnectPtr, interval: c_int, count: c_uint) -> c_int;

    fn virDomainCreate(domain: virDomainPtr) -> c_int;
    fn virDomainCreateXML(connection: virConnectPtr, xml: *const c_char, flags: c_uint) -> virDomainPtr;
    fn virDomainDefineXML(connection: virConnectPtr, xml: *const c_char) -> virDomainPtr;
    fn virDomainDestroy(domain: virDomainPtr) -> c_int;
    fn virDomainFree(domain: virDomainPtr) -> c_int;
    fn virDomainGetID(domain: virDomainPtr) -> c_uint;
    fn virDomainGetName(domain: virDomainPtr) -> *const c_char;
    fn virDomainGetState(
        domain: virDomainPtr,
        state: *mut c_int,
        reason: *mut c_int,
        flags: c_uint
    ) -> c_int;
    fn virDomainGetUUID(domain: virDomainPtr, uuid: *mut c_uchar) -> c_int;
    fn virDomainGetXMLDesc(domain: virDomainPtr, flags: c_uint) -> *mut c_char;
    fn virDomainInterfaceAddresses(
        domain: virDomainPtr,
        interfaces: *mut *mut virDomainInterfacePtr,
        source: c_uint,
        flags: c_uint
    ) -> c_int;
    fn virDomainInterfaceFree(interface: virDomainInterfacePtr);
    fn virDomainIsActive(domain: virDomainPtr) -> c_int;
    fn virDomainLookupByName(connection: virConnectPtr, name: *const c_char) -> virDomainPtr;
    fn virDomainLookupByUUID(connection: virConnectPtr, uuid: *const c_uchar) -> virDomainPtr;
    fn virDomainOpenConsole(
        domain: virDomainPtr,
        device: *const c_char,
        stream: virStreamPtr,
        flags: c_uint
    ) -> c_int;
    fn virDomainUndefine(domain: virDomainPtr) -> c_int;
    fn virDomainUndefineFlags(domain: virDomainPtr, flags: c_uint) -> c_int;

    fn virEventRegisterDefaultImpl() -> c_int;
    fn virEventRunDefaultImpl() -> c_int;
    fn virGetLastError() -> virErrorPtr;
    fn virSetErrorFunc(data: *mut c_void, handler: virErrorFunc);

    fn virNetworkFree(network: virNetworkPtr) -> c_int;
    fn virNetworkIsActive(network: virNetworkPtr) -> c_int;
    fn virNetworkLookupByName(connection: virConnectPtr, name: *const c_char) -> virNetworkPtr;

    fn virStoragePoolFree(pool: virStoragePoolPtr) -> c_int;
    fn virStoragePoolGetName(pool: virStoragePoolPtr) -> *const c_char;
    fn virStoragePoolGetXMLDesc(pool: virStoragePoolPtr, flags: c_uint) -> *mut c_char;
    fn virStoragePoolIsActive(pool: virStoragePoolPtr) -> c_int;
    fn virStoragePoolListVolumes(pool: virStoragePoolPtr, names: *mut *mut c_char, most: c_int) -> c_int;
    fn virStoragePoolLookupByName(connection: virConnectPtr, name: *const c_char) -> virStoragePoolPtr;
    fn virStoragePoolRefresh(pool: virStoragePoolPtr, flags: c_uint) -> c_int;

    fn virStorageVolCreateXML(pool: virStoragePoolPtr, xml: *const c_char, flags: c_uint) -> virStorageVolPtr;
    fn virStorageVolDelete(volume: virStorageVolPtr, flags: c_uint) -> c_int;
    fn virStorageVolDownload(
        volume: virStorageVolPtr,
        stream: virStreamPtr,
        offset: c_ulonglong,
        length: c_ulonglong,
        flags: c_uint
    ) -> c_int;
    fn virStorageVolFree(volume: virStorageVolPtr) -> c_int;
    fn virStorageVolGetPath(volume: virStorageVolPtr) -> *mut c_char;
    fn virStorageVolGetXMLDesc(volume: virStorageVolPtr, flags: c_uint) -> *mut c_char;
    fn virStorageVolLookupByKey(connection: virConnectPtr, key: *const c_char) -> virStorageVolPtr;
    fn virStorageVolLookupByName(pool: virStoragePoolPtr, name: *const c_char) -> virStorageVolPtr;
    fn virStorageVolLookupByPath(connection: virConnectPtr, path: *const c_char) -> virStorageVolPtr;
    fn virStorageVolUpload(
        volume: virStorageVolPtr,
        stream: virStreamPtr,
        offset: c_ulonglong,
        length: c_ulonglong,
        flags: c_uint
    ) -> c_int;

    fn virStreamAbort(stream: virStreamPtr) -> c_int;
    fn virStreamEventRemoveCallback(stream: virStreamPtr) -> c_int;
    fn virStreamFinish(stream: virStreamPtr) -> c_int;
    fn virStreamFree(stream: virStreamPtr) -> c_int;
    fn virStreamNew(connection: virConnectPtr, flags: c_uint) -> virStreamPtr;
    fn virStreamRecv(stream: virStreamPtr, data: *mut c_char, length: usize) -> c_int;
    fn virStreamSend(stream: virStreamPtr, data: *const c_char, length: usize) -> c_int;
}

#[cfg(test)]
mod tests {
    use cloud_providers::{ErrorKind, Retry};

    use super::*;

    #[test]
    fn the_note_names_the_library_that_is_loaded() {
        let loads: serde_json::Value = serde_json::from_slice(LOADS.strip_suffix(b"\0").unwrap()).unwrap();
        assert_eq!(loads[0]["soname"][0], NAME);
    }

    #[test]
    fn the_library_of_this_host_has_every_function() {
        load().map(drop).unwrap();
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn nothing_of_this_file_is_offered_to_libraries() {
        load().map(drop).unwrap();
        // SAFETY: nothing is called.
        let found =
            unsafe { loader::Library::this().get::<unsafe extern "C" fn()>("virConnectOpen\0").is_ok() };
        assert!(!found);
    }

    #[test]
    fn a_library_that_is_missing_is_named_with_the_words_of_the_loader_and_the_package() {
        let error = Library::open("libvirt-of-nobody.so.0").map(drop).unwrap_err();
        assert_eq!((error.kind(), error.retry()), (&ErrorKind::Config, Retry::Never));
        let report = error.report();
        for part in ["library: libvirt-of-nobody.so.0", "No such file or directory", "libvirt0"] {
            assert!(report.contains(part), "{report}");
        }
    }

    #[test]
    fn a_library_that_lacks_a_function_is_told_with_its_name() {
        // One that every program has.
        let error = Library::open("libc.so.6").map(drop).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Config);
        let report = error.report();
        assert!(report.contains("too old") && report.contains("virConnectClose"), "{report}");
    }
}
