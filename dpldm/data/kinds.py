"""Kinds of images: the one public word that whoever knows images without looking at them may say of them."""

KINDS = {  # word → what it is for, in the words of its user
    "ink": "dark or light strokes on an even ground, two tones mostly: handwriting, letters, drawings in line",
    "object": "one thing on an even ground, in many greys or colours: garments, tools, products",
    "photo": "scenes that fill the image; treated like none, as nothing was found that helps all of them",
    "none": "nothing is said",
}
