//! How the guest is linked: without an operating system's start files, where `guest.ld` says.

fn main() {
    println!("cargo:rerun-if-changed=src/guest/guest.ld");
    let Ok(folder) = std::env::var("CARGO_MANIFEST_DIR") else {
        return;
    };
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-Wl,--build-id=none",
        "-Wl,-z,noexecstack",
        "-Wl,-z,max-page-size=4096",
        &format!("-Wl,-T,{folder}/src/guest/guest.ld"),
    ] {
        println!("cargo:rustc-link-arg-bin=pvmm-hostile={argument}");
    }
}
