"""Differentially private image synthesis by latent diffusion.

An independent re-implementation, from the abstract alone, of "Differential Privacy Data Synthesis Method Based on
Latent Diffusion Model" (Ge, Zhang, Sun; Computer Science 51(3), 2024).
"""
