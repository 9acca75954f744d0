"""VoxCeleb, CN-Celeb and folders of recordings to manifests and trial lists."""
