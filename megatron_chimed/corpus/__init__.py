"""Text to Megatron's indexed corpus: resumable, in shards, byte-identical with Megatron's own tool."""
