"""Runs one container: the argument is a file that says how. The first process gets what the kubelet's runtime gives it
and nothing else: a root of its own, these mounts, this user, these capabilities, no other processes."""
import ctypes, json, os, signal, socket, sys

with open(sys.argv[1]) as file:
    spec = json.load(file)
libc = ctypes.CDLL(None, use_errno=True)
NEW_MOUNTS, NEW_NAMES, NEW_IPC, NEW_PROCESSES = 0x20000, 0x4000000, 0x8000000, 0x20000000
READ_ONLY, NO_SUID, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 32, 0x1000, 0x4000, 1 << 18
DIE_WITH_PARENT, DROP_CAPABILITY, NO_NEW_PRIVILEGES = 1, 24, 38


def check(result, what):
    if result != 0:
        sys.exit(f'cannot {what}: {os.strerror(ctypes.get_errno())}')


def mount(source, target, kind=None, flags=0):
    check(libc.mount(source.encode() if source else None, target.encode(), kind, flags, None), f'mount {target}')


def read_only(target):
    mount(None, target, None, REMOUNT | BIND | READ_ONLY)


check(libc.unshare(NEW_MOUNTS | NEW_NAMES | NEW_IPC | NEW_PROCESSES), 'unshare')
child = os.fork()
if child:
    # As a runtime does: what the kubelet says goes to the first process alone.
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.exit(status if status >= 0 else 128 - status)

libc.prctl(DIE_WITH_PARENT, signal.SIGKILL)
mount(None, '/', None, RECURSIVE | PRIVATE)
root = spec['root']
mount(root, root, None, BIND | RECURSIVE)
for entry in spec['mounts']:
    source, target = entry['source'], root + entry['target']
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, 'a').close()
    mount(source, target, None, BIND | RECURSIVE)
    if entry['read_only']:
        read_only(target)
mount('proc', root + '/proc', b'proc')
mount('sysfs', root + '/sys', b'sysfs', READ_ONLY)
mount('tmpfs', root + '/dev', b'tmpfs', NO_SUID)
for name in 'null', 'zero', 'full', 'random', 'urandom', 'tty':
    open(f'{root}/dev/{name}', 'w').close()
    mount(f'/dev/{name}', f'{root}/dev/{name}', None, BIND)
for name, target in (('fd', ''), ('stdin', '/0'), ('stdout', '/1'), ('stderr', '/2')):
    os.symlink('/proc/self/fd' + target, f'{root}/dev/{name}')
os.mkdir(root + '/dev/shm')
mount('tmpfs', root + '/dev/shm', b'tmpfs')
if spec['read_only']:
    read_only(root)
socket.sethostname(spec['hostname'])
os.chroot(root)
os.chdir(spec['directory'])
with open('/proc/sys/kernel/cap_last_cap') as file:
    last = int(file.read())
for capability in range(last + 1):
    if capability not in spec['capabilities']:
        check(libc.prctl(DROP_CAPABILITY, capability, 0, 0, 0), f'drop capability {capability}')
os.umask(0o022)
os.setgroups(spec['groups'])
os.setresgid(*[spec['group']] * 3)
os.setresuid(*[spec['user']] * 3)
# Changing users has undone it.
libc.prctl(DIE_WITH_PARENT, signal.SIGKILL)
if spec['no_new_privileges']:
    check(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), 'give up new privileges')
os.execvpe(spec['command'][0], spec['command'], spec['environment'])
