//! A network and a root folder of its own for a program, so that it may listen wherever a configuration says: on
//! port 80 of every address, on addresses that this machine does not have, on sockets in folders that are not there.
//!
//! These are Linux namespaces, made by `unshare`. As root they always work; anybody else needs a system that lets
//! users have namespaces of their own, as most do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{RigError, write_file};
use crate::tools;

/// Runs inside, as root of the new namespaces, before the program: arguments are the new root folder, the number of
/// folders to make in it, these folders, and the program with its arguments.
const SETUP: &str = r"
import ctypes, fcntl, os, socket, struct, sys

root, count = sys.argv[1], int(sys.argv[2])
folders, program = sys.argv[3:3 + count], sys.argv[3 + count:]

# The loopback interface of a new network is down.
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    set_flags, up = 0x8914, 0x1
    fcntl.ioctl(control, set_flags, struct.pack('16sh22x', b'lo', up))
for family in 'ipv4', 'ipv6':
    # Listeners may be bound to addresses of pods. Where this is forbidden, those that do will say so.
    try:
        with open(f'/proc/sys/net/{family}/ip_nonlocal_bind', 'w') as switch:
            switch.write('1')
    except OSError:
        pass

libc = ctypes.CDLL(None, use_errno=True)
BIND, RECURSIVE = 0x1000, 0x4000

def mount(source, target, kind=None, flags=0):
    if libc.mount(source.encode(), target.encode(), kind, flags, None) != 0:
        sys.exit(f'cannot mount {source} on {target}: {os.strerror(ctypes.get_errno())}')

# Makes `copy` look like `folder`, but with real folders on the way to `wanted`, in which more can be made.
def mirror(folder, copy, wanted):
    for entry in os.scandir(folder):
        target = os.path.join(copy, entry.name)
        below = [path[1:] for path in wanted if path[0] == entry.name and path[1:]]
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), target)
        elif not entry.is_dir():
            open(target, 'w').close()
            mount(entry.path, target, flags=BIND)
        elif below:
            os.mkdir(target)
            mirror(entry.path, target, below)
        else:
            os.mkdir(target)
            mount(entry.path, target, flags=BIND | RECURSIVE)

if folders:
    here = os.getcwd()
    mount('tmpfs', root, b'tmpfs')
    folders = [os.path.realpath(folder) for folder in folders]
    mirror('/', root, [folder.split('/')[1:] for folder in folders])
    for folder in folders:
        os.makedirs(root + folder, exist_ok=True)
    os.chroot(root)
    os.chdir(here)
os.execvp(program[0], program)
";

/// Returns a command that runs `program` in namespaces of its own, with `folders` (absolute paths) made there and
/// nowhere else. `scratch` must outlive the program.
///
/// # Errors
///
/// If there is no Python, or `scratch` cannot be written.
pub fn command(program: &Path, folders: &[PathBuf], scratch: &Path) -> Result<Command, RigError> {
    let setup = write_file(scratch, "isolation.py", SETUP)?;
    let root = scratch.join("root");
    fs::create_dir_all(&root).map_err(RigError::io(format!("could not make {}", root.display())))?;
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--net", "--mount", "--"]).arg(tools::python()?).arg(setup).arg(root);
    command.arg(folders.len().to_string()).args(folders).arg(program);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rig::process::Scratch;

    /// Runs a shell script inside and returns what it prints.
    fn run(script: &str, folders: &[&str]) -> String {
        let scratch = Scratch::new("isolation").unwrap();
        let folders: Vec<PathBuf> = folders.iter().map(PathBuf::from).collect();
        let mut command = command(Path::new("sh"), &folders, scratch.path()).unwrap();
        let output = command.args(["-c", script]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn the_network_is_empty_but_for_loopback() {
        let interfaces = run("ls /sys/class/net; cat /proc/net/dev | tail -n +3 | cut -d: -f1", &[]);
        assert!(interfaces.ends_with("lo\n"), "{interfaces}");
        let python = tools::python().unwrap();
        let script = "import socket; s = socket.create_server(('127.0.0.1', 80)); print(s.getsockname()[1])";
        assert_eq!(run(&format!("{} -c \"{script}\"", python.display()), &[]), "80\n");
    }

    #[test]
    fn folders_are_made_inside_only() {
        for folder in
            ["/weft-isolation-test/deep", "/etc/weft-isolation-test", "/var/run/weft-isolation-test"]
        {
            let script = format!("echo text > {folder}/file && cat {folder}/file && cat /etc/passwd | wc -l");
            let said = run(&script, &[folder]);
            assert!(said.starts_with("text\n") && !said.ends_with("\n0\n"), "{said}");
            assert!(!Path::new(folder).exists());
        }
    }
}
