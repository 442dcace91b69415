//! Descriptors of all messages under `proto/`.

use std::sync::LazyLock;

use prost_reflect::DescriptorPool;

/// Returns the descriptors of all messages under `proto/`, with their custom options.
///
/// The first call decodes them, which takes some tens of milliseconds.
pub fn pool() -> &'static DescriptorPool {
    static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
        DescriptorPool::decode(include_bytes!("generated/envoy.fds").as_slice())
            .expect("the descriptor set was written by our own generator")
    });
    &POOL
}
