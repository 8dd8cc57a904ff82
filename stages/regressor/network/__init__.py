"""The networks, and what they speak: representation, camera, joints."""
