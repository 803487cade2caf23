"""Language models as judges of answers, by rubrics, each verdict kept on disk: for rewards and for benchmarks."""
