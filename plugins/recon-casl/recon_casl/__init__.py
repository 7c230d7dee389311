"""CASL: the 3D Magic Mirror (Zheng, Zhu, Ji, Yang and Chua, 2022). docs/methods/casl.md."""
